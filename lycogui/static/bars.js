/* One number a layer as bars, in the order of the model: an own canvas, with the name and the value under the pointer.
   Arrow keys walk over the bars too. */
lyco.Bars = class {
  constructor(canvas, tip) {
    Object.assign(this, {canvas, tip, rows: [], at: -1, write: String});
    canvas.tabIndex = 0;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("mousemove", event => this.go(Math.floor((event.offsetX - this.box().left) / this.wide())));
    canvas.addEventListener("mouseleave", () => this.go(-1));
    canvas.addEventListener("blur", () => this.go(-1));
    canvas.addEventListener("keydown", event => {
      const steps = {ArrowRight: 1, ArrowLeft: -1}, ends = {Home: 0, End: this.rows.length - 1};
      if (event.key in steps) this.go(Math.min(this.rows.length - 1, Math.max(0, this.at + steps[event.key])));
      else if (event.key in ends) this.go(ends[event.key]);
      else return;
      event.preventDefault();
    });
  }

  /* rows: [{name, group, value (or null), lines: [text]}]; write: value -> text */
  show(rows, write) { Object.assign(this, {rows, write, at: -1}); this.draw(); }

  go(at) {
    const next = at >= 0 && at < this.rows.length ? at : -1;
    if (next !== this.at) { this.at = next; this.draw(); }
  }

  box() { return {left: 52, right: this.canvas.clientWidth - 4, top: 10, bottom: this.canvas.clientHeight - 24}; }
  wide() { const box = this.box(); return (box.right - box.left) / Math.max(1, this.rows.length); }

  draw() {
    const {canvas, rows} = this, ratio = devicePixelRatio || 1, W = canvas.clientWidth, H = canvas.clientHeight;
    if (!W || !H) return;
    if (canvas.width !== Math.round(W * ratio) || canvas.height !== Math.round(H * ratio)) {
      canvas.width = Math.round(W * ratio); canvas.height = Math.round(H * ratio);
    }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, W, H);
    g.font = "11px system-ui, sans-serif";
    const box = this.box(), wide = this.wide(), most = Math.max(1e-12, ...rows.map(row => row.value || 0)) * 1.06;
    const ink = lyco.css("--body-text-color-subdued"), line = lyco.css("--border-color-primary");
    const y = value => box.bottom - (box.bottom - box.top) * value / most;
    this.scale(g, {box, most, y, ink, line});
    this.groups(g, {box, wide, ink, line, H});
    g.fillStyle = lyco.css("--bar");
    rows.forEach((row, i) => {
      if (row.value === null || row.value === undefined) return;
      const left = box.left + i * wide, gap = wide > 4 ? 1 : 0, high = Math.max(row.value > 0 ? 1 : 0, box.bottom - y(row.value));
      g.fillStyle = i === this.at ? lyco.css("--color-accent") : lyco.css("--bar");
      g.fillRect(left, box.bottom - high, Math.max(wide - gap, .75), high);
    });
    this.tell({box, wide});
  }

  scale(g, {box, most, y, ink, line}) {
    const raw = most / 4, power = 10 ** Math.floor(Math.log10(raw)), step = power * [1, 2, 5, 10].find(m => m * power >= raw);
    g.textAlign = "right"; g.textBaseline = "middle"; g.strokeStyle = line; g.lineWidth = 1; g.fillStyle = ink;
    for (let value = 0; value <= most; value += step) {
      const at = Math.round(y(value)) + .5;
      g.beginPath(); g.moveTo(box.left, at); g.lineTo(box.right, at); g.stroke();
      g.fillText(this.write(value, true), box.left - 6, at);
    }
    g.textBaseline = "alphabetic";
  }

  /* A line between two parts of the model, and their names below where there is room. */
  groups(g, {box, wide, ink, line, H}) {
    let start = 0;
    g.textAlign = "center"; g.fillStyle = ink; g.strokeStyle = ink;
    this.rows.forEach((row, i) => {
      const next = this.rows[i + 1];
      if (next && next.group === row.group) return;
      const left = box.left + start * wide, right = box.left + (i + 1) * wide;
      const fits = [row.group, row.group.replace(/^UNet /, "").replace("text encoder", "TE")].find(text => g.measureText(text).width + 8 < right - left);
      if (fits) g.fillText(fits, (left + right) / 2, H - 6);
      if (next) { g.globalAlpha = .5; g.beginPath(); g.moveTo(Math.round(right) + .5, box.top); g.lineTo(Math.round(right) + .5, H - 4); g.stroke(); g.globalAlpha = 1; }
      start = i + 1;
    });
  }

  tell({box, wide}) {
    const row = this.rows[this.at];
    this.tip.hidden = !row;
    if (!row) return;
    lyco.fill(this.tip, lyco.h("b", {}, row.name), ...row.lines.map(text => lyco.h("div", {}, text)));
    const x = box.left + (this.at + .5) * wide, right = x > (box.left + box.right) / 2;
    this.tip.style.left = right ? "auto" : `${x + 14}px`;
    this.tip.style.right = right ? `${this.canvas.clientWidth - x + 14}px` : "auto";
  }
};

/* Where a layer stands: its part of the model by name, whoever wrote the name. */
lyco.place = name => {
  if (/(^|[._])(te\d?|text_encoder\w*|text_model|clip_[lg])[._]/.test(name) || /^text_encoder/.test(name)) return /te2|text_encoder_2|clip_g/.test(name) ? "text encoder 2" : "text encoder";
  if (/down_blocks|input_blocks/.test(name)) return "UNet down";
  if (/mid_block|middle_block/.test(name)) return "UNet mid";
  if (/up_blocks|output_blocks/.test(name)) return "UNet up";
  if (/conv_out|conv_norm_out/.test(name)) return "UNet out";
  return "UNet in";
};
lyco.PLACES = ["text encoder", "text encoder 2", "UNet in", "UNet down", "UNet mid", "UNet up", "UNet out"];
lyco.inOrder = rows => {
  const natural = new Intl.Collator("en", {numeric: true});
  return [...rows].sort((a, b) => lyco.PLACES.indexOf(a.group) - lyco.PLACES.indexOf(b.group) || natural.compare(a.name, b.name));
};
