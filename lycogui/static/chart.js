/* What every plot on a canvas shares: it is drawn anew when its size or the colours change, what is under the pointer or
   chosen with the arrow keys is told beside it, and its lines have round numbers. */
lyco.Chart = class {
  constructor(canvas, tip) {
    Object.assign(this, {canvas, tip, data: null, at: -1});
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /* The pointer and the arrow keys choose one of `count()` places, from left to right; `under` is the one at a px. */
  walks(count, under) {
    const {canvas} = this, within = at => Math.min(count() - 1, Math.max(0, at));
    canvas.tabIndex = 0;
    canvas.addEventListener("mousemove", event => this.go(under(event.offsetX)));
    canvas.addEventListener("mouseleave", () => this.go(-1));
    canvas.addEventListener("blur", () => this.go(-1));
    canvas.addEventListener("keydown", event => {
      const wanted = {ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: 0, End: count() - 1}[event.key];
      if (wanted === undefined || !count()) return;
      this.go(within(wanted));
      event.preventDefault();
    });
  }
  go(at) { if (at !== this.at) { this.at = at; this.draw(); } }

  /* An empty canvas in CSS pixels and the colours of the page; null where there is no room. */
  paper() {
    const {canvas} = this, ratio = devicePixelRatio || 1, W = canvas.clientWidth, H = canvas.clientHeight;
    if (!W || !H) return null;
    const width = Math.round(W * ratio), height = Math.round(H * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, W, H);
    g.font = "11px system-ui, sans-serif";
    g.setLineDash([]);
    return {g, W, H, ink: lyco.css("--body-text-color-subdued"), line: lyco.css("--border-color-primary"), accent: lyco.css("--color-accent")};
  }

  /* 1, 2 or 5 times a power of ten: about `count` of them span that much. */
  round(span, count) {
    const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
    return power * [1, 2, 5, 10].find(m => m * power >= raw);
  }

  /* A level line for each value, with its number to the left. */
  levels(g, values, {left, right, y, ink, line, write = value => String(+value.toPrecision(3)), gap = 6}) {
    g.strokeStyle = line; g.fillStyle = ink; g.lineWidth = 1; g.textAlign = "right"; g.textBaseline = "middle";
    for (const value of values) {
      const at = Math.round(y(value)) + .5;
      g.beginPath(); g.moveTo(left, at); g.lineTo(right, at); g.stroke();
      g.fillText(write(value), left - gap, at);
    }
    g.textBaseline = "alphabetic";
  }
  /* 0, step, 2 step and so on, up to the most */
  steps(most, step) { return Array.from({length: Math.floor(most / step + 1e-9) + 1}, (_, i) => i * step); }

  upright(g, x, top, bottom, ink) {
    g.strokeStyle = ink; g.lineWidth = 1; g.beginPath(); g.moveTo(x, top); g.lineTo(x, bottom); g.stroke();
  }

  /* The tip on the side of x where there is more room. */
  beside(x, far, gap = 10) {
    Object.assign(this.tip.style, {left: far ? "auto" : `${x + gap}px`, right: far ? `${this.canvas.clientWidth - x + gap}px` : "auto"});
  }
};
