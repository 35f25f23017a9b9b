/* What is held out, by timestep: the first and the last look of each run on screen and what changed, as numbers. */
lyco.Looks = class {
  constructor(root) { Object.assign(this, {root, shown: ""}); }

  /* [{name, colour (a css variable), looks: [{step, loss, timesteps: {timestep: loss}}]}] */
  show(runs) {
    const found = runs.filter(run => run.looks.length), now = JSON.stringify(found);
    if (now === this.shown) return;
    this.shown = now;
    this.root.hidden = !found.length;
    lyco.fill(this.root, found.length ? this.table(found) : null);
  }

  table(runs) {
    const {h} = lyco, times = [...new Set(runs.flatMap(run => run.looks.flatMap(look => Object.keys(look.timesteps))))].sort((a, b) => a - b);
    const head = (text, title) => h("th.n", {scope: "col", title}, text);
    return h("div.scrolls", {tabIndex: 0, role: "region", "aria-label": "Validation loss by timestep"}, h("table.looks.num", {},
      h("caption", {}, h("b", {}, "val/loss by timestep"), ", on the pictures held out. A low timestep is nearly clean, a high one nearly noise."),
      h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "timestep"), ...times.map(t => head(lyco.count(+t), `Timestep ${t}`)), head("mean", "val/loss"))),
      ...runs.map(run => this.body(run, times, runs.length > 1))));
  }

  body({name, colour, looks}, times, named) {
    const {h} = lyco, [first, last] = [looks[0], looks.at(-1)], values = look => [...times.map(t => look.timesteps[t]), look.loss];
    const row = (head, cells, kind = "") => h(`tr${kind}`, {}, h("th", {scope: "row"}, head), ...cells.map(cell => h("td.n", {}, cell)));
    const loss = value => Number.isFinite(value) ? value.toFixed(4) : "–";
    const change = (a, b) => Number.isFinite(a) && Number.isFinite(b) && a ? `${b < a ? "−" : "+"}${Math.abs(100 * (b / a - 1)).toFixed(1)} %` : "–";
    const looked = look => row(`step ${lyco.count(look.step)}`, values(look).map(loss));
    return h("tbody", {}, named ? h("tr", {}, h("th.whose", {scope: "rowgroup", colSpan: times.length + 2, title: name}, h("i", {style: {background: `var(${colour})`}}), name)) : null,
      looked(first), last === first ? null : looked(last), last === first ? null : row("change", values(first).map((value, i) => change(value, values(last)[i])), ".change"));
  }
};
