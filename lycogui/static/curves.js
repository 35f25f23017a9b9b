/* File size over dim for every algorithm, both axes in powers of two; the chosen one in the accent colour. */
lyco.Curves = class extends lyco.Chart {
  constructor(canvas, tip, take) {
    super(canvas, tip);
    Object.assign(this, {take, near: null});
    canvas.addEventListener("mousemove", event => { this.near = this.nearest(event.offsetX, event.offsetY); this.draw(); });
    canvas.addEventListener("mouseleave", () => { this.near = null; this.draw(); });
    canvas.addEventListener("click", () => this.near && this.take(this.near.algo, this.near.dim));
    canvas.addEventListener("keydown", event => this.walk(event));
    canvas.addEventListener("blur", () => { this.near = null; this.draw(); });
  }

  /* Left and right to another dim, up and down to the next larger or smaller algorithm there, Enter to take it. */
  walk(event) {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key], {near, data} = this;
    if (event.key === "Enter" && near) return this.take(near.algo, near.dim);
    if (event.key === "Escape") this.near = null;
    else if (!step || !data?.lines.length) return;
    else this.near = near ? this.beyond(near, ...step) : this.start();
    event.preventDefault();
    this.draw();
  }

  start() {
    const line = this.data.lines.find(line => line.algo === this.data.chosen) || this.data.lines[0];
    return this.spot(line, line.points.find(p => p[0] === this.data.dim) || line.points[0]);
  }

  /* A point of a line; an algorithm without dim leaves the dim as it is. */
  spot(line, point, dim = this.data.dim) { return {algo: line.algo, label: line.label, fixed: line.fixed, point, dim: line.fixed ? dim : point[0]}; }

  beyond({algo, dim}, across, up) {
    const at = line => line.points.reduce((best, p) => Math.abs(Math.log2(p[0] / dim)) < Math.abs(Math.log2(best[0] / dim)) ? p : best);
    const lines = up ? [...this.data.lines].sort((a, b) => at(a)[1] - at(b)[1]) : this.data.lines;
    const place = lines.findIndex(line => line.algo === algo), line = lines[Math.max(0, Math.min(lines.length - 1, place + up))];
    const points = line.points, here = points.indexOf(at(line));
    return this.spot(line, points[Math.max(0, Math.min(points.length - 1, here + across))], dim);
  }

  /* {dim, chosen, lines: [{algo, label, fixed, points: [[dim, bytes, parameters]]}]} */
  show(data) { this.data = data; this.near = null; this.draw(); }

  places() {
    const {canvas, data} = this, all = data.lines.flatMap(line => line.points);
    const log = Math.log2, dims = all.map(p => log(p[0])), sizes = all.map(p => log(p[1]));
    const [left, right] = [Math.min(...dims), Math.max(...dims)], [low, high] = [Math.floor(Math.min(...sizes)), Math.ceil(Math.max(...sizes))];
    const box = {left: 72, right: canvas.clientWidth - 76, top: 12, bottom: canvas.clientHeight - 30};
    return {box, left, right, low, high,
      x: dim => box.left + (box.right - box.left) * (log(dim) - left) / (right - left || 1),
      y: bytes => box.bottom - (box.bottom - box.top) * (log(bytes) - low) / (high - low || 1)};
  }

  nearest(px, py) {
    if (!this.data) return null;
    const {x, y} = this.places();
    let found = null, least = 24;
    for (const line of this.data.lines) for (const point of line.points) {
      const away = Math.hypot(x(point[0]) - px, y(point[1]) - py);
      if (away < least) { least = away; found = this.spot(line, point); }
    }
    return found;
  }

  draw() {
    const {data} = this, paper = data && data.lines.length && this.paper();
    if (!paper) return;
    const {g, ink, line: grey, accent} = paper, at = this.places();
    this.grid(g, at, ink, grey);
    const ordered = [...data.lines].sort((a, b) => (a.algo === data.chosen) - (b.algo === data.chosen));
    for (const line of ordered) {
      const on = line.algo === data.chosen || line.algo === this.near?.algo;
      g.strokeStyle = g.fillStyle = on ? accent : ink;
      g.globalAlpha = on ? 1 : .55; g.lineWidth = on ? 2 : 1;
      g.beginPath();
      line.points.forEach(([dim, bytes], i) => i ? g.lineTo(at.x(dim), at.y(bytes)) : g.moveTo(at.x(dim), at.y(bytes)));
      g.stroke();
      for (const [dim, bytes] of line.fixed ? [] : line.points) { g.beginPath(); g.arc(at.x(dim), at.y(bytes), dim === data.dim ? 4 : 1.5, 0, 7); g.fill(); }
    }
    g.globalAlpha = 1;
    this.names(g, at, ink, accent);
    this.tell(at);
  }

  grid(g, {box, left, right, low, high, x, y}, ink, line) {
    this.levels(g, this.decades(low, high), {...box, y, ink, line, gap: 8, write: bytes => lyco.size(bytes).replace(".0 ", " ")});
    g.textAlign = "center";
    for (let power = Math.ceil(left); power <= right; power++) g.fillText(String(2 ** power), x(2 ** power), box.bottom + 16);
    g.textAlign = "right"; g.fillText("dim", box.left - 8, box.bottom + 16);
  }

  /* 10 KiB, 100 KiB, 1 MiB, 10 MiB and so on between two powers of two; with 3 and 30 between them where that leaves few. */
  decades(low, high) {
    const within = digits => [10, 20, 30, 40].flatMap(unit => digits.map(digit => digit * 2 ** unit)).filter(bytes => bytes >= 2 ** low && bytes <= 2 ** high);
    const few = within([1, 10, 100]);
    return few.length > 3 ? few : within([1, 3, 10, 30, 100, 300]);
  }

  /* At the end of each line its name, moved apart where several end together. */
  names(g, {box, y}, ink, accent) {
    const ends = this.data.lines.map(line => ({line, py: y(line.points.at(-1)[1])})).sort((a, b) => a.py - b.py);
    let above = -Infinity;
    for (const end of ends) { end.py = Math.max(end.py, above + 13); above = end.py; }
    const low = box.bottom + 2;
    for (let i = ends.length - 1, under = low; i >= 0; i--) { ends[i].py = Math.min(ends[i].py, under); under = ends[i].py - 13; }
    const dims = this.data.lines.flatMap(line => line.points.map(([dim]) => dim)), first = Math.min(...dims), last = Math.max(...dims);
    g.textAlign = "left"; g.textBaseline = "middle";
    for (const {line, py} of ends) {
      g.fillStyle = line.algo === this.data.chosen ? accent : ink;
      const end = box.left + (box.right - box.left) * (line.fixed ? 1 : Math.log2(line.points.at(-1)[0] / first) / Math.log2(last / first || 2));
      if (Math.abs(py - y(line.points.at(-1)[1])) > 2 || end < box.right - 2) {  // moved apart, or a line that ends earlier: a thread leads there
        g.strokeStyle = g.fillStyle; g.globalAlpha = .45; g.lineWidth = 1; g.setLineDash([1, 3]);
        g.beginPath(); g.moveTo(end + 3, y(line.points.at(-1)[1])); g.lineTo(box.right + 5, py); g.stroke();
        g.setLineDash([]); g.globalAlpha = 1;
      }
      g.fillText(line.label, box.right + 8, py);
    }
    g.textBaseline = "alphabetic";
  }

  tell({x, y}) {
    this.tip.hidden = !this.near;
    this.canvas.style.cursor = this.near ? "pointer" : "default";
    if (!this.near) return;
    const {label, fixed, point: [dim, bytes, parameters]} = this.near, px = x(dim), far = px > this.canvas.clientWidth / 2;
    lyco.fill(this.tip, lyco.h("b", {}, fixed ? label : `${label}, dim ${dim}`), lyco.h("div", {}, lyco.mib(bytes)), lyco.h("div", {}, `${lyco.count(parameters)} parameters`));
    this.beside(px, far, 14);
    this.tip.style.top = `${Math.max(0, y(bytes) - 30)}px`;
  }
};
