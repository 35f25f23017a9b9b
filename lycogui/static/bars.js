/* One number a layer as bars, in the order of the model: an own canvas, with the name and the value under the pointer.
   Arrow keys walk over the bars too. */
lyco.Bars = class extends lyco.Chart {
  constructor(canvas, tip) {
    super(canvas, tip);
    Object.assign(this, {rows: [], write: String});
    this.walks(() => this.rows.length, x => this.bar(x));
  }

  /* rows: [{name, group, value (or null), lines: [text]}]; write: value -> text */
  show(rows, write) { Object.assign(this, {rows, write, at: -1}); this.draw(); }

  bar(x) {
    const at = Math.floor((x - this.box().left) / this.wide());
    return at < this.rows.length ? Math.max(-1, at) : -1;
  }

  box() { return {left: 52, right: this.canvas.clientWidth - 4, top: 10, bottom: this.canvas.clientHeight - 24}; }
  wide() { const box = this.box(); return (box.right - box.left) / Math.max(1, this.rows.length); }

  draw() {
    const {rows} = this, paper = this.paper();
    if (!paper) return;
    const {g, H, ink, line} = paper;
    const box = this.box(), wide = this.wide(), most = Math.max(1e-12, ...rows.map(row => row.value || 0)) * 1.06;
    const y = value => box.bottom - (box.bottom - box.top) * value / most;
    this.levels(g, this.steps(most, this.round(most, 4)), {...box, y, ink, line, write: value => this.write(value, true)});
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
    const x = box.left + (this.at + .5) * wide;
    this.beside(x, x > (box.left + box.right) / 2, 14);
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
