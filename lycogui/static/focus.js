/* Over the timesteps: how often each is drawn, and how much an error there counts. Two strips over one axis. */
lyco.parts.focus = ({element, props, watch}) => {
  const {h, fill} = lyco, root = element.querySelector(".focus-root");
  const canvas = h("canvas.focus", {tabIndex: 0, role: "img"}), tip = h("div.tip", {hidden: true}), note = h("p.note");
  const chart = new lyco.Focus(canvas, tip);
  const whole = h("div", {}, h("div.chart", {}, canvas, tip), note);
  const draw = () => {
    const data = props.value;
    if (!data) return fill(root, h("p.note", {}, "Working it out"));
    if (data.problems) return fill(root, ...data.problems.map(text => h("p.note.warn", {}, text)));
    note.textContent = "Often: 1 is as often as evenly. Weight: 1 counts as it is."
      + (data.zero_terminal ? " This base's last timestep is noise alone (zero terminal SNR)." : "");
    if (!root.contains(whole)) fill(root, whole);
    chart.show(data);
  };
  watch("value", draw);
  draw();
};

lyco.Focus = class {
  constructor(canvas, tip) {
    Object.assign(this, {canvas, tip, data: null, at: -1});
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("mousemove", event => this.go(this.bin(event.offsetX)));
    canvas.addEventListener("mouseleave", () => this.go(-1));
    canvas.addEventListener("blur", () => this.go(-1));
    canvas.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step || !this.data) return;
      this.go(Math.min(this.data.often.length - 1, Math.max(0, this.at + step)));
      event.preventDefault();
    });
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
  go(at) { if (at !== this.at) { this.at = at; this.draw(); } }

  draw() {
    const {canvas, data} = this, ratio = devicePixelRatio || 1, W = canvas.clientWidth, H = canvas.clientHeight;
    if (!W || !H || !data) return;
    canvas.width = Math.round(W * ratio); canvas.height = Math.round(H * ratio);
    const g = canvas.getContext("2d"), {left, right} = this.box(), middle = (H - 24) / 2;
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.font = "11px system-ui, sans-serif";
    const ink = lyco.css("--body-text-color-subdued"), line = lyco.css("--border-color-primary");
    this.strip(g, data.often, "How often", {left, right, top: 20, bottom: middle - 4, ink, line});
    this.strip(g, data.weight, "Weight of an error", {left, right, top: middle + 20, bottom: H - 24, ink, line});
    g.fillStyle = ink; g.textBaseline = "alphabetic";
    const parts = W < 300 ? 2 : 4;
    for (let i = 0; i <= parts; i++) {
      g.textAlign = i === 0 ? "left" : i === parts ? "right" : "center";
      const value = lyco.count(Math.round(data.count * i / parts));
      g.fillText(i === 0 ? `${value} clean` : i === parts ? `noise ${value}` : i === parts / 2 ? `timestep ${value}` : value, left + (right - left) * i / parts, H - 6);
    }
    this.tell({left, right});
  }

  strip(g, values, title, {left, right, top, bottom, ink, line}) {
    const most = 1.08 * Math.max(1, ...values), y = value => bottom - (bottom - top) * value / most;
    const raw = most / 4, power = 10 ** Math.floor(Math.log10(raw)), step = power * [1, 2, 5, 10].find(m => m * power >= raw);
    g.strokeStyle = line; g.fillStyle = ink; g.lineWidth = 1; g.textAlign = "right"; g.textBaseline = "middle";
    for (let value = 0; value <= most; value += step) {
      const at = Math.round(y(value)) + .5;
      g.beginPath(); g.moveTo(left, at); g.lineTo(right, at); g.stroke();
      g.fillText(String(+value.toPrecision(3)), left - 6, at);
    }
    g.textAlign = "left"; g.textBaseline = "alphabetic"; g.fillText(title, left, top - 7);
    const wide = (right - left) / values.length, accent = lyco.css("--color-accent");
    g.beginPath(); g.moveTo(left, bottom);
    values.forEach((value, i) => { g.lineTo(left + i * wide, y(value)); g.lineTo(left + (i + 1) * wide, y(value)); });
    g.lineTo(right, bottom);
    g.fillStyle = accent; g.globalAlpha = .18; g.fill();
    g.globalAlpha = 1; g.strokeStyle = accent; g.lineWidth = 1.5; g.stroke();
    if (this.at < 0) return;
    const x = left + (this.at + .5) * wide;
    g.strokeStyle = ink; g.lineWidth = 1; g.beginPath(); g.moveTo(x, top); g.lineTo(x, bottom); g.stroke();
  }

  tell({left, right}) {
    const {tip, data, at} = this;
    tip.hidden = at < 0;
    if (at < 0) return;
    const per = data.count / data.often.length, text = value => String(+value.toPrecision(3)), far = at > data.often.length / 2;
    lyco.fill(tip, lyco.h("b", {}, `Timesteps ${Math.round(at * per)} to ${Math.round((at + 1) * per) - 1}`),
      lyco.h("div", {}, `${text(data.often[at])} times as often as evenly`), lyco.h("div", {}, `weight ${text(data.weight[at])}`));
    const x = left + (right - left) * (at + .5) / data.often.length;
    Object.assign(tip.style, {left: far ? "auto" : `${x + 10}px`, right: far ? `${this.canvas.clientWidth - x + 10}px` : "auto"});
  }
};
