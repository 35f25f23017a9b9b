/* The learning rate over the steps, as the schedule will have it; a line for each part with a rate of its own. */
lyco.parts.pace = ({element, props, watch}) => {
  const {h, fill} = lyco, root = element.querySelector(".pace-root");
  const canvas = h("canvas.pace", {role: "img"}), tip = h("div.tip", {hidden: true}), note = h("p.note");
  const chart = new lyco.Pace(canvas, tip), whole = h("div", {}, h("div.chart", {}, canvas, tip), note);
  const draw = () => {
    const data = props.value;
    if (!data) return fill(root, h("p.note", {}, "Working it out"));
    if (data.problems) return fill(root, ...data.problems.map(text => h("p.note.warn", {}, text)));
    note.textContent = data.note;
    if (!root.contains(whole)) fill(root, whole);
    chart.show(data);
  };
  watch("value", draw);
  draw();
};

lyco.Pace = class extends lyco.Chart {
  constructor(canvas, tip) {
    super(canvas, tip);
    this.walks(() => this.data ? this.data.points.length : 0, x => this.nearest(x));
  }

  /* {steps, points: [[step, multiplier]], lines: [[name, rate]], unit} */
  show(data) {
    Object.assign(this, {data, at: -1});
    const [name, rate] = data.lines[0], of = at => this.write(rate * data.points.at(at)[1]);
    this.canvas.setAttribute("aria-label", `${name} over ${data.steps} steps: from ${of(0)}, at most ${this.write(rate)}, to ${of(-1)}${data.unit}`);
    this.draw();
  }

  write(rate) { return rate === 0 ? "0" : rate < .01 ? rate.toExponential(2).replace(/\.?0+e/, "e") : String(+rate.toPrecision(3)); }
  box() { return {left: 50, right: this.canvas.clientWidth - 8, top: 10, bottom: this.canvas.clientHeight - 24}; }
  x(step) { const {left, right} = this.box(); return left + (right - left) * (step - 1) / Math.max(1, this.data.steps - 1); }
  nearest(px) {
    if (!this.data) return -1;
    return this.data.points.reduce((best, point, i, all) => Math.abs(this.x(point[0]) - px) < Math.abs(this.x(all[best][0]) - px) ? i : best, 0);
  }

  draw() {
    const {data} = this, paper = data && this.paper();
    if (!paper) return;
    const {g, H, ink, line, accent} = paper, {left, right, top, bottom} = this.box();
    const most = Math.max(1e-12, ...data.lines.map(([, rate]) => rate)), y = rate => bottom - (bottom - top) * rate / most;
    this.levels(g, [0, most / 2, most], {left, right, y, ink, line, write: this.write});
    for (const share of [0, .5, 1]) {
      g.textAlign = share === 0 ? "left" : share === 1 ? "right" : "center";
      const step = Math.max(1, Math.round(share * data.steps));
      g.fillText(share === 0 ? `step ${step}` : lyco.count(step), left + (right - left) * share, H - 8);
    }
    data.lines.forEach(([, rate], i) => {
      g.strokeStyle = i ? ink : accent; g.lineWidth = i ? 1.5 : 2; g.setLineDash([[], [5, 4], [2, 3]][i]); g.lineJoin = "round"; g.beginPath();
      data.points.forEach(([step, by], n) => n ? g.lineTo(this.x(step), y(rate * by)) : g.moveTo(this.x(step), y(rate * by)));
      g.stroke();
    });
    g.setLineDash([]);
    this.tell(g, {top, bottom, ink});
  }

  tell(g, {top, bottom, ink}) {
    const {tip, data, at} = this;
    tip.hidden = at < 0;
    if (at < 0) return;
    const [step, by] = data.points[at], x = this.x(step), far = x > this.canvas.clientWidth / 2;
    this.upright(g, x, top, bottom, ink);
    lyco.fill(tip, lyco.h("b", {}, `Step ${lyco.count(step)}`), ...data.lines.map(([name, rate]) => lyco.h("div", {}, `${name} ${this.write(rate * by)}${data.unit}`)));
    this.beside(x, far);
  }
};
