/* The plan: four figures, the notes, and every algorithm on the same layers. */
lyco.parts.plan = ({element, props, trigger, watch}) => {
  const {h, fill} = lyco;
  const root = element.querySelector(".plan-root");
  const figure = (value, unit, line) => h("div", {}, h("div.v", {}, value, unit && h("small", {}, ` ${unit}`)), h("div.l.num", {}, line));

  const table = plan => {
    const most = Math.max(1, ...plan.rows.map(row => row.parameters)), size = plan.bytes && lyco.mib(plan.bytes);
    const equal = row => row.equal ? h("button", {title: `Switch to ${row.label} at the dim whose file comes closest to ${size}`,
      onclick: () => trigger("equal", {algo: row.algo})}, "make equal") : row.on ? null : h("span.note", {}, "fixed size");
    return h("div.pane", {}, h("p.h", {}, "The same layers with every algorithm"),
      h("table.algos.sizes", {}, h("thead", {}, h("tr", {}, ...["Algorithm", "At these settings", "", "Parameters", "File", ""].map((text, i) =>
        h(i === 3 || i === 4 ? "th.n" : "th", {}, text)))),
      h("tbody", {}, ...plan.rows.map(row => h(row.on ? "tr.on" : "tr", {},
        h("td.name", {}, row.label), h("td.note.settings", {title: row.settings}, row.settings),
        ...(row.problem ? [h("td.note.why", {colSpan: 3, title: row.problem}, h("span", {}, row.on ? "Not possible, see above." : row.problem))] : [
          h("td.wide", {}, h("div.bar", {style: {width: `${Math.max(1, 100 * row.parameters / most)}%`}})),
          h("td.n", {}, lyco.count(row.parameters)), h("td.n", {title: `${lyco.count(row.bytes)} bytes`}, lyco.mib(row.bytes))]),
        h("td", {}, size ? equal(row) : null))))),
      size ? h("p.note", {}, "Compare at equal size: ", h("b", {}, "make equal"), ` switches to that algorithm at the dim whose file comes closest to ${size}.`) : null);
  };

  const draw = () => {
    const plan = props.value;
    if (!plan) return fill(root, h("p.note", {}, "Working it out"));
    if (plan.problems) return fill(root, h("div.pane.problems", {role: "alert"}, h("b", {}, "These settings cannot be used"),
      ...plan.problems.map(text => h("p", {}, text)),
      plan.dim ? h("div.row", {}, h("button.button", {onclick: () => trigger("dim", {dim: plan.dim})}, `Set dim to ${plan.dim}`), h("span.note", {}, "The nearest that is possible on every layer.")) : null),
      plan.rows ? table(plan) : null);
    fill(root,
      h("div.pane", {}, h("div.plan", {},
        figure(lyco.count(plan.parameters), "", `parameters in ${plan.layers} layers`),
        figure((plan.bytes / 2 ** 20).toFixed(2), "MiB", `file, exactly ${lyco.count(plan.bytes)} bytes`),
        figure((plan.training / 2 ** 20).toFixed(2), "MiB", "adapter, gradients and optimiser while training"),
        figure(lyco.count(plan.steps), "steps", plan.pictures ? `${plan.epochs} times through ${plan.pictures} pictures` : "no pictures chosen yet")),
        h("p.note", {}, plan.parts),
        ...plan.notes.map(text => h("p.note.warn", {}, text))),
      table(plan));
  };
  watch("value", draw);
  draw();
};
