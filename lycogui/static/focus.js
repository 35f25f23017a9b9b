/* Over the timesteps: how often each is drawn, and how much an error there counts. Two strips over one axis. */
lyco.parts.focus = ({element, props, watch}) => {
  const {h, fill} = lyco, root = element.querySelector(".focus-root");
  const canvas = h("canvas.focus", {role: "img"}), tip = h("div.tip", {hidden: true}), note = h("p.note");
  const chart = new lyco.Focus(canvas, tip);
  const whole = h("div", {}, h("div.chart", {}, canvas, tip), note);
  const draw = () => {
    const data = props.value;
    if (!data) return fill(root, h("p.note", {}, "Working it out"));
    if (data.problems) return fill(root, ...data.problems.map(text => h("p.note.warn", {}, text)));
    note.textContent = "How often: 1 is an even share. Weight: 1 counts as it is."
      + (data.zero_terminal ? " This base's last timestep is noise alone (zero terminal SNR)." : "");
    if (!root.contains(whole)) fill(root, whole);
    chart.show(data);
  };
  watch("value", draw);
  draw();
};

lyco.Focus = class extends lyco.Chart {
  constructor(canvas, tip) {
    super(canvas, tip);
    this.walks(() => this.data ? this.data.often.length : 0, x => this.bin(x));
  }

  /* {count, often: [number], weight: [number]}: the bins share the timesteps 0 to count */
  show(data) {
    this.data = data;
    const most = list => +Math.max(...list).toPrecision(3);
    this.canvas.setAttribute("aria-label", `Over ${data.count} timesteps: drawn at most ${most(data.often)} times as often as evenly, weight at most ${most(data.weight)}`);
    this.draw();
  }

  box() { return {left: 44, right: this.canvas.clientWidth - 6}; }
  bin(x) {
    const {left, right} = this.box(), bins = this.data ? this.data.often.length : 0;
    const found = Math.floor(bins * (x - left) / (right - left));
    return found >= 0 && found < bins ? found : -1;
  }

  draw() {
    const {data} = this, paper = data && this.paper();
    if (!paper) return;
    const {g, W, H, ink} = paper, {left, right} = this.box(), middle = (H - 24) / 2;
    this.strip(data.often, "How often", {...paper, left, right, top: 20, bottom: middle - 4});
    this.strip(data.weight, "Weight of an error", {...paper, left, right, top: middle + 20, bottom: H - 24});
    g.fillStyle = ink; g.textBaseline = "alphabetic";
    const parts = W < 300 ? 2 : 4;
    for (let i = 0; i <= parts; i++) {
      g.textAlign = i === 0 ? "left" : i === parts ? "right" : "center";
      const value = lyco.count(Math.round(data.count * i / parts));
      g.fillText(i === 0 ? `${value} clean` : i === parts ? `noise ${value}` : i === parts / 2 ? `timestep ${value}` : value, left + (right - left) * i / parts, H - 6);
    }
    this.tell({left, right});
  }

  strip(values, title, {g, left, right, top, bottom, ink, line, accent}) {
    const most = 1.08 * Math.max(1, ...values), y = value => bottom - (bottom - top) * value / most;
    this.levels(g, this.steps(most, this.round(most, 4)), {left, right, y, ink, line});
    g.textAlign = "left"; g.fillText(title, left, top - 7);
    const wide = (right - left) / values.length;
    g.beginPath(); g.moveTo(left, bottom);
    values.forEach((value, i) => { g.lineTo(left + i * wide, y(value)); g.lineTo(left + (i + 1) * wide, y(value)); });
    g.lineTo(right, bottom);
    g.fillStyle = accent; g.globalAlpha = .18; g.fill();
    g.globalAlpha = 1; g.strokeStyle = accent; g.lineWidth = 1.5; g.stroke();
    if (this.at >= 0) this.upright(g, left + (this.at + .5) * wide, top, bottom, ink);
  }

  tell({left, right}) {
    const {tip, data, at} = this;
    tip.hidden = at < 0;
    if (at < 0) return;
    const per = data.count / data.often.length, text = value => String(+value.toPrecision(3)), far = at > data.often.length / 2;
    lyco.fill(tip, lyco.h("b", {}, `Timesteps ${Math.round(at * per)} to ${Math.round((at + 1) * per) - 1}`),
      lyco.h("div", {}, `${text(data.often[at])} times as often as evenly`), lyco.h("div", {}, `weight ${text(data.weight[at])}`));
    this.beside(left + (right - left) * (at + .5) / data.often.length, far);
  }
};
