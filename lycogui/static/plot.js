/* The loss curve: an own canvas, because a picture of five thousand points must cost nothing. */
lyco.Plot = class extends lyco.Chart {
  constructor(canvas, tip) {
    super(canvas, tip);
    Object.assign(this, {series: [], log: false, hover: null});
    canvas.addEventListener("mousemove", event => { this.hover = event.offsetX; this.draw(); });
    canvas.addEventListener("mouseleave", () => { this.hover = null; this.draw(); });
  }

  /* [{name, colour (a css variable), points: [[step, loss, average, lr]], total, marks: [{step, kind}]}] */
  show(series) { this.series = series; this.draw(); }

  draw() {
    const paper = this.paper();
    if (!paper) return;
    const {g, W, H, ink, line} = paper;
    const all = this.series.filter(s => s.points.length), apart = this.difference(all);
    const box = {left: 48, right: W - 12, top: 20, bottom: H - 76 - (apart ? 74 : 0)}, rate = {top: H - 44, bottom: H - 22};
    const last = Math.max(10, ...this.series.map(s => s.total || 0), ...all.map(s => s.points.at(-1)[0]));
    const [low, high] = this.range(all);
    const x = step => box.left + (box.right - box.left) * step / last;
    const at = v => this.log ? Math.log10(Math.max(v, 1e-8)) : v;
    const y = v => box.top + (box.bottom - box.top) * (1 - (at(v) - at(low)) / (at(high) - at(low) || 1));
    this.grid(g, {x, y, box, low, high, last, ink, line, rate});
    for (const one of all) this.curve(g, one, {x, y: v => Math.max(box.top, y(v))});
    if (apart) this.strip(g, apart, {x, box: {...box, top: box.bottom + 24, bottom: box.bottom + 74}, ink, line});
    this.rates(g, all, {x, rate, ink, left: box.left});
    this.marks(g, {x, box});
    this.tell(g, all, {x, y, box, last, ink});
  }

  range(all) {
    let low = Infinity, high = -Infinity, most = -Infinity;
    for (const {points, validations = []} of all) {
      for (const [, v] of validations) if (isFinite(v) && v !== null) { low = Math.min(low, v); high = Math.max(high, v); most = Math.max(most, v); }
      const from = Math.min(points.length - 1, Math.floor(points.length * .02));
      points.forEach(([, loss, average], i) => {
        for (const v of [loss, average]) if (isFinite(v) && v !== null) {
          low = Math.min(low, v); most = Math.max(most, v);
          if (i >= from || v === average) high = Math.max(high, v);
        }
      });
    }
    if (!isFinite(low)) return [0, 1];
    if (this.log || most - low < 2 * (high - low)) high = most;  // else the first steps would press all others flat
    const room = (high - low || high || 1) * .08;
    return [this.log ? Math.max(low * .9, 1e-6) : Math.max(0, low - room), high + room];
  }

  grid(g, {x, y, box, low, high, last, ink, line, rate}) {
    const values = [];
    if (this.log) for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) for (const m of [1, 2, 5]) values.push(m * 10 ** p);
    else { const step = this.round(high - low, 5); for (let v = Math.ceil(low / step) * step; v <= high; v += step) values.push(v); }
    this.levels(g, values.filter(v => v >= low && v <= high), {...box, y, ink, line, gap: 8});
    const step = Math.max(1, this.round(last, 6));
    for (let s = 0; s <= last; s += step) { g.textAlign = s + step > last ? "right" : "center"; g.fillText(lyco.count(s), x(s), rate.bottom + 16); }
    g.textAlign = "right"; g.fillText("step", box.left - 8, rate.bottom + 16); g.fillText("loss", box.left - 8, box.top - 9);
    if (this.series.every(s => !s.points.length)) { g.textAlign = "center"; g.fillText("No step yet", (box.left + box.right) / 2, (box.top + box.bottom) / 2); }
  }

  /* Raw faint, as the span of each pixel column; the average bold. */
  curve(g, {points, colour, validations = []}, {x, y}) {
    g.strokeStyle = lyco.css(colour);
    g.globalAlpha = .3; g.lineWidth = 1; g.beginPath();
    let column = null, low = 0, high = 0;
    const flush = () => { if (column !== null) { g.moveTo(column, low); g.lineTo(column, high + .5); } };
    const sparse = points.length < 2 * (x(points.at(-1)[0]) - x(points[0][0]));
    points.forEach(([step, loss], i) => {
      if (loss === null) return;
      const px = x(step), py = y(loss);
      if (sparse) { i ? g.lineTo(px, py) : g.moveTo(px, py); return; }
      const c = Math.round(px) + .5;
      if (c !== column) { flush(); column = c; low = high = py; } else { low = Math.min(low, py); high = Math.max(high, py); }
    });
    if (!sparse) flush();
    g.stroke();
    g.globalAlpha = 1; g.lineWidth = 2; g.lineJoin = "round"; g.beginPath();
    points.forEach(([step, , average], i) => { if (average !== null) i ? g.lineTo(x(step), y(average)) : g.moveTo(x(step), y(average)); });
    g.stroke();
    g.lineWidth = 1.5; g.setLineDash([6, 4]); g.beginPath();
    validations.forEach(([step, v], i) => { if (v !== null) i ? g.lineTo(x(step), y(v)) : g.moveTo(x(step), y(v)); });
    g.stroke(); g.setLineDash([]);
    if (validations.length === 1 && validations[0][1] !== null) {  // no line yet
      g.fillStyle = lyco.css(colour); g.beginPath(); g.arc(x(validations[0][0]), y(validations[0][1]), 3, 0, 7); g.fill();
    }
  }

  /* The mean of the first run minus that of the second at the steps both have, A minus B for a pair; null unless there are two. */
  difference(all) {
    if (all.length !== 2) return null;
    const [a, b] = all[0].colour === "--b" ? [all[1], all[0]] : all, other = new Map(b.points.map(p => [p[0], p[2]]));
    const points = a.points.filter(p => p[2] !== null && isFinite(other.get(p[0]) ?? NaN)).map(p => [p[0], p[2] - other.get(p[0])]);
    return points.length > 1 ? {names: [a.name, b.name], points} : null;
  }

  strip(g, {points}, {x, box, ink, line}) {
    const settled = points.slice(Math.floor(points.length * .02)), most = Math.max(1e-9, ...settled.map(p => Math.abs(p[1])));
    const middle = Math.round((box.top + box.bottom) / 2) + .5, y = v => middle - (box.bottom - box.top) / 2 * Math.max(-1, Math.min(1, v / most));
    g.strokeStyle = line; g.lineWidth = 1; g.beginPath(); g.moveTo(box.left, middle); g.lineTo(box.right, middle); g.stroke();
    g.strokeStyle = lyco.css("--body-text-color"); g.lineWidth = 1.5; g.beginPath();
    points.forEach(([step, v], i) => i ? g.lineTo(x(step), y(v)) : g.moveTo(x(step), y(v)));
    g.stroke();
    g.fillStyle = ink; g.textAlign = "right"; g.textBaseline = "middle";
    g.fillText(`+${most.toPrecision(1)}`, box.left - 8, box.top + 4); g.fillText(`−${most.toPrecision(1)}`, box.left - 8, box.bottom - 4); g.fillText("A − B", box.left - 8, middle);
    g.textBaseline = "alphabetic";
  }

  rates(g, all, {x, rate, ink, left}) {
    const most = Math.max(1e-12, ...all.map(s => Math.max(...s.points.map(p => p[3] || 0))));
    g.fillStyle = ink; g.textAlign = "left";
    if (all.length) g.fillText(`learning rate, at most ${+most.toPrecision(3)}`, left, rate.top - 6);
    for (const {points, colour} of all) {
      g.strokeStyle = lyco.css(colour); g.lineWidth = 1.5; g.globalAlpha = .8; g.beginPath();
      points.forEach(([step, , , lr], i) => { const py = rate.bottom - (rate.bottom - rate.top) * lr / most; i ? g.lineTo(x(step), py) : g.moveTo(x(step), py); });
      g.stroke();
    }
    g.globalAlpha = 1;
  }

  /* A small sign where something happened: ● picture, ▪ checkpoint, ▲ resumed. */
  marks(g, {x, box}) {
    const signs = {sample: "●", save: "▪", resume: "▲"};
    g.textAlign = "center"; g.font = "8px system-ui, sans-serif";
    for (const {marks = [], colour} of this.series.toReversed()) {  // the first series on top
      g.fillStyle = lyco.css(colour);
      for (const {step, kind} of marks) g.fillText(signs[kind], x(step), box.bottom + {sample: 8, save: 16, resume: 2}[kind]);
    }
    g.font = "11px system-ui, sans-serif";
  }

  apart(all, step) {
    const found = this.difference(all);
    if (!found) return [];
    const near = found.points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
    return [lyco.h("div", {}, `${found.names[0]} − ${found.names[1]}: ${near[1] < 0 ? "−" : "+"}${Math.abs(near[1]).toPrecision(2)}`)];
  }

  tell(g, all, {x, box, last, ink}) {
    const {tip} = this;
    if (this.hover === null || this.hover < box.left || this.hover > box.right || !all.length) { tip.hidden = true; return; }
    const step = Math.round(last * (this.hover - box.left) / (box.right - box.left));
    g.strokeStyle = ink; g.globalAlpha = .6; g.beginPath(); g.moveTo(x(step), box.top); g.lineTo(x(step), box.bottom); g.stroke(); g.globalAlpha = 1;
    const nearest = points => points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
    const near = all.map(s => ({s, p: nearest(s.points), v: s.validations?.length ? nearest(s.validations) : null}));
    lyco.fill(tip, ...near.map(({s, p, v}) => lyco.h("div", {}, lyco.h("i", {style: {background: `var(${s.colour})`}}),
      `${s.name}: step ${p[0]}, loss ${p[1]?.toFixed(4)}, mean ${p[2]?.toFixed(4)}, lr ${p[3]?.toExponential(2)}` + (v ? `; step ${v[0]}, val/loss ${v[1]?.toFixed(4)}` : ""))), ...this.apart(all, step));
    tip.hidden = false;
    tip.style.left = this.hover > (box.left + box.right) / 2 ? "56px" : "auto";
    tip.style.right = this.hover > (box.left + box.right) / 2 ? "auto" : "16px";
  }
};
