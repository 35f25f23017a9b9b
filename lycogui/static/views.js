/* The views of the Algorithm tab, each a function (root, data, {plan, trigger, fresh}). A view that is open keeps its
   own fields while the numbers move: `fresh` is true when it has just been opened. */
lyco.VIEWS = [["layers", "Every algorithm"], ["dims", "Size by dim"], ["budget", "What fits"], ["needs", "Memory"],
  ["advice", "Advice"], ["pair", "A and B"], ["presets", "Presets"], ["share", "Share"]];
lyco.views = {};

lyco.views.layers = (root, rows, {plan, trigger}) => {
  const {h, fill} = lyco;
  const most = Math.max(1, ...rows.map(row => row.parameters)), size = plan.bytes && lyco.mib(plan.bytes);
  const equal = row => row.on || !size ? null : h("button", {title: `Switch to ${row.label} with the settings whose file comes closest to ${size}`,
    onclick: () => trigger("equal", {algo: row.algo})}, "make equal");
  fill(root,
    h("table.algos.sizes", {}, h("thead", {}, h("tr", {}, ...["Algorithm", "At these settings", "", "Parameters", "File", ""].map((text, i) =>
      h(i === 3 || i === 4 ? "th.n" : "th", {}, text)))),
    h("tbody", {}, ...rows.map(row => h(row.on ? "tr.on" : "tr", {},
      h("td.name", {}, row.label), h("td.note.settings", {title: row.settings}, row.settings),
      ...(row.problem ? [h("td.note.why", {colSpan: 3, title: row.problem}, h("span", {}, row.on ? "Not possible, see above." : row.problem))] : [
        h("td.wide", {}, h("div.bar", {style: {width: `${Math.max(1, 100 * row.parameters / most)}%`}})),
        h("td.n", {}, lyco.count(row.parameters)), h("td.n", {title: `${lyco.count(row.bytes)} bytes`}, lyco.mib(row.bytes))]),
      h("td", {}, equal(row)))))),
    size && h("p.note", {}, "Compare at equal size: ", h("b", {}, "make equal"), ` switches to that algorithm with the dim or factor whose file comes closest to ${size}.`));
};

lyco.views.dims = (root, data, {trigger, fresh}) => {
  const {h, fill} = lyco;
  if (fresh) {
    const canvas = h("canvas.curves", {tabIndex: 0, role: "application", "aria-label": "File size over dim, every algorithm: arrow keys walk, Enter takes"}), tip = h("div.tip", {hidden: true, "aria-live": "polite"});
    root.curves = new lyco.Curves(canvas, tip, (algo, dim) => trigger("apply", {values: {"network.algo": algo, "network.dim": dim, "network.options": {}}}));
    fill(root, h("div.chart", {}, canvas, tip), h("p.note", {}, "File size in MiB over dim, both in powers of two, without metadata; the other settings as they are. A larger point is the dim on screen; algorithms without dim are level. Click a line, or walk with the arrow keys and press Enter, to take that algorithm and dim."));
  }
  root.curves.show(data);
};

lyco.views.budget = (root, data, {trigger, fresh}) => {
  const {h, fill} = lyco;
  if (fresh) {
    const field = h("input", {type: "number", min: .01, step: "any", value: data.limit, "aria-label": "Largest file, MiB", 
      onchange: () => { if (field.value > 0) { root.table.classList.add("stale"); trigger("look", {asked: {budget: +field.value}}); } }});
    root.table = h("div");
    fill(root, h("label.row.budget", {}, "The largest file of each algorithm up to", field, "MiB"), root.table);
  }
  root.table.classList.remove("stale");
  const row = fit => h(fit.problem ? "tr.off" : "tr", {}, h("td.name", {}, fit.label),
    h("td.note.settings", {title: fit.settings}, fit.settings),
    ...(fit.problem ? [h("td.note.why", {colSpan: 9, title: fit.problem}, h("span", {}, fit.problem))] : [
      h("td.n", {}, lyco.count(fit.parameters)), h("td.n", {title: `${lyco.count(fit.file_bytes)} bytes`}, lyco.mib(fit.file_bytes)),
      ...(fit.symbols ? fit.symbols.map((symbol, i) => h("td.star", {title: `${data.aspects[i]}: ${fit.ratings_in_words ? fit.ratings_in_words[i] : symbol} (${fit.rating})`}, symbol))
        : [h("td.note", {colSpan: 6, title: fit.rating}, fit.rating)]),
      h("td", {}, h("button", {onclick: () => trigger("apply", {values: fit.changed})}, "use"))]));
  fill(root.table, h("table.algos.sizes", {}, h("thead", {}, h("tr", {},
    h("th", {}, "Algorithm"), h("th", {}, "Settings"), h("th.n", {}, "Parameters"), h("th.n", {}, "File"),
    ...data.aspects.map(text => h("th.star", {title: text}, text.replace(" layers", ""))), h("th"))),
    h("tbody", {}, ...data.fits.map(row))),
    h("p.note", {}, "★ best, ◉, ●, ▲ least; speed is that of training. ", data.caveat));
};

lyco.views.needs = (root, data, {trigger}) => {
  const {h, fill} = lyco;
  const kinds = ["weights", "cache", "activations", "temporary", "gradients", "optimizer", "adapter", "fixed", "correction"];
  const items = data.items.filter(item => item.bytes > 0).sort((a, b) => kinds.indexOf(a.kind) - kinds.indexOf(b.kind));
  const over = data.peak > data.free, near = over || data.free < 3 * data.peak, whole = near ? Math.max(data.peak, data.free) : 1.1 * data.peak;
  const share = bytes => `${(100 * bytes / whole).toFixed(2)}%`;
  const needed = data.savings.slice(0, data.enough || 0);
  const take = list => trigger("apply", {values: Object.assign({}, ...list.map(s => s.values))});
  fill(root,
    h("p.note", {}, h("b", {}, lyco.memory(data.peak)), ` at the highest moment, ${data.phase}; `, h("b", {}, lyco.memory(data.free)), ` of ${lyco.memory(data.total)} are free on ${data.name}.`),
    data.missing ? h("p.note.warn", {}, data.missing) : null,
    h("div.stack", {role: "img", "aria-label": `${lyco.memory(data.peak)} of memory`}, ...items.map(item => h(`i.kind-${item.kind}`, {style: {width: share(item.bytes)}, title: `${item.name}: ${lyco.memory(item.bytes)}`})),
      near && h("b", {style: {left: share(data.free)}, title: `${lyco.memory(data.free)} free`})),
    h("table.algos.items", {}, h("tbody", {}, ...items.map(item => h("tr", {}, h("td", {}, h(`i.swatch.kind-${item.kind}`), item.name), h("td.n", {title: lyco.mib(item.bytes)}, lyco.memory(item.bytes)))))),
    over && data.enough === null ? h("p.note.warn", {}, "It does not fit, and no setting below makes it fit. Choose a smaller model or free some memory.") : null,
    data.savings.length ? h("p.h.below", {}, over ? "What would make it fit, the cheapest to give up first" : "What would lower it") : null,
    data.savings.length ? h("table.algos", {}, h("thead", {}, h("tr", {}, h("th", {}, "Setting"), h("th.n", {}, "Saves"), h("th.n", {title: "With this and all above it"}, "Peak after it and those above"), h("th"))), h("tbody", {}, ...data.savings.map((s, i) => h(over && i < needed.length ? "tr.on" : "tr", {},
      h("td", {}, s.text), h("td.n", {}, `−${lyco.memory(s.bytes)}`), h("td.n", {}, lyco.memory(s.peak)),
      h("td", {}, h("button", {onclick: () => take([s])}, "apply")))))) : null,
    over && needed.length ? h("div.row", {}, h("button.button", {onclick: () => take(needed)}, needed.length > 1 ? `Apply the first ${needed.length}` : "Apply the first")) : null);
};

lyco.views.advice = (root, data, {trigger}) => {
  const {h, fill} = lyco;
  const card = s => h("div.advice", {}, h("div", {}, h("b", {}, s.does), h("p.note", {}, `${s.why} `, h("i", {}, s.sure))),
    h("div.cost", {}, h("span.num", {title: `now ${lyco.mib(data.now)}`}, lyco.mib(s.file_bytes)), h("button.button", {onclick: () => trigger("apply", {values: s.changes})}, "Apply")));
  fill(root,
    h("p.note", {}, "What do you want of it, or what is wrong with what it learned?"),
    h("div.row.goals", {}, ...data.goals.map(([goal, label]) => h(goal === data.goal ? "button.button.on" : "button.button", {onclick: () => trigger("look", {asked: {goal}})}, label))),
    ...(data.suggestions || []).map(card),
    data.suggestions && !data.suggestions.length ? h("p.note", {}, "These settings are already what the guideline would choose.") : null,
    ...data.notes.map(text => h("p.note", {}, text)));
};

lyco.views.presets = (root, data, {trigger}) => {
  const {h, fill} = lyco;
  const option = one => h("option", {value: one.name, selected: one.name === data.preset}, one.title);
  const group = (label, list) => list.length ? h("optgroup", {label}, ...list.map(option)) : null;
  const here = data.presets.filter(one => one.fits), own = data.presets.filter(one => one.own && !one.fits), rest = data.presets.filter(one => !one.own);
  const select = h("select.preset", {"aria-label": "Preset", onchange: () => trigger("look", {asked: {preset: select.value}})},
    h("option", {value: "", selected: !data.preset}, "Choose a preset"),
    group(`For ${data.base} on this card`, here), group(here.length ? "For other cards" : `For ${data.base}`, own), group(data.base ? "For other models" : "By model and card", rest));
  const chosen = data.changes;
  fill(root,
    h("p.note", {}, "Settings of a whole run for a purpose, a model and a card. The base model, the pictures and the name stay yours."),
    h("div.row", {}, select, chosen && h("span.grow"), chosen && h("button.button", {disabled: !chosen.length, onclick: () => trigger("apply", {values: data.values})}, chosen.length ? `Apply ${lyco.some(chosen.length, "change")}` : "Nothing to change")),
    chosen && h("p.note", {}, h("b", {}, data.text), ` About ${lyco.memory(data.for.peak)} at most on ${data.for.title}, of ${data.for.memory} GB.`),
    chosen && !chosen.length ? h("p.note", {}, "The settings on screen are this preset's.") : null,
    chosen && chosen.length ? h("table.algos.changes", {}, h("thead", {}, h("tr", {}, h("th", {}, "Setting"), h("th", {}, "Now"), h("th", {}, "With the preset"))),
      h("tbody", {}, ...chosen.map(([label, now, then]) => h("tr", {}, h("td", {}, label), h("td.note", {}, now), h("td", {}, then))))) : null,
    chosen && h("p.note", {}, "Where each number comes from stands in the file: ", h("code", {}, `assets/presets/${data.preset}.toml`), "."));
};

lyco.views.pair = (root, data, {plan, trigger}) => {
  const {h, fill} = lyco;
  const [a, b] = data.sides, names = [...new Set([...Object.keys(a.values), ...Object.keys(b.values)])];
  const facts = [["Parameters", s => lyco.count(s.parameters), "parameters"], ["Layers", s => lyco.count(s.layers), "layers"],
    ["File", s => lyco.mib(s.bytes), "bytes"], ["Peak memory", s => lyco.memory(s.memory), "memory"],
    ["Time", s => s.time.known ? lyco.time(s.time.seconds) : "unknown", "time"]];
  const side = (s, name) => h(`th.side.${name}`, {}, h("i"), `${name.toUpperCase()}  ${s.label}`, h("div.note", {}, s.own ? s.settings : `${s.settings}; chosen from what is on screen`));
  const acts = (s, name) => h("td", {}, h("div.row", {}, h("button.link", {onclick: () => trigger("put", {side: name})}, "Put what is on screen here"),
    h("button.link", {onclick: () => trigger("take", {side: name})}, "Load it"), s.own ? h("button.link", {onclick: () => trigger("unset", {side: name})}, "Clear") : null));
  const line = (label, left, right) => h(left === right ? "tr" : "tr.differs", {}, h("td.note", {}, label), h("td", {}, left), h("td", {}, right));
  fill(root, h("table.algos.pairs", {}, h("thead", {}, h("tr", {}, h("th"), side(a, "a"), side(b, "b"))), h("tbody", {},
    h("tr", {}, h("td"), acts(a, "a"), acts(b, "b")),
    ...facts.map(([label, write, key]) => line(label, a.problem ? "" : write(a), b.problem ? "" : write(b), key)),
    ...names.filter(name => a.values[name] !== b.values[name]).map(name => line(name, a.values[name] ?? "–", b.values[name] ?? "–")))),
    ...[a, b].filter(s => s.problem).map(s => h("p.note.warn", {}, s.problem)),
    data.note ? h("p.note", {}, data.note) : null,
    h("p.note", {}, "All other settings are those on screen, for both. ", h("b", {}, "Train an A/B pair"), " on the Train tab starts these two."));
};

lyco.views.share = (root, data, {trigger, fresh}) => {
  const {h, fill} = lyco;
  const forms = [["toml", "TOML"], ["whole", "TOML, all settings"], ["command", "Command line"], ["kohya", "kohya"]];
  if (fresh) {
    const paste = h("textarea", {rows: 4, placeholder: "Paste TOML, a command line, or kohya's network_args; or drop an adapter file here", "aria-label": "Settings to read"});
    const drop = async event => {
      const file = event.dataTransfer?.files[0];
      if (!file) return;
      event.preventDefault();
      try { trigger("read", {text: await lyco.headerOf(file)}); } catch (error) { lyco.toast(error.message, "bad"); }
    };
    root.text = h("pre.shared", {tabIndex: 0});
    root.forms = h("div.segments");
    root.unsaid = h("p.note");
    fill(root, h("div.row", {}, root.forms, h("span.grow"), h("button.button", {onclick: async () => { await navigator.clipboard.writeText(root.text.textContent); lyco.toast("Copied."); }}, "Copy")),
      root.text, root.unsaid, h("p.h.below", {}, "Take over somebody's settings"),
      h("div", {ondragover: event => event.preventDefault(), ondrop: drop}, paste),
      h("div.row", {}, h("button.button", {onclick: () => paste.value.trim() ? trigger("read", {text: paste.value}) : lyco.toast("Paste something first.")}, "Read into the form")));
  }
  fill(root.forms, ...forms.map(([form, label]) => h(form === data.form ? "button.on" : "button", {onclick: () => trigger("look", {asked: {form}})}, label)));
  root.text.textContent = data.text || "# All settings are the defaults.";
  fill(root.unsaid, ...(data.unsaid.length ? [`Not said in this form: ${data.unsaid.join("; ")}.`] : []));
};

/* A text file as it is; of a .safetensors file what its header says of itself. */
lyco.headerOf = async file => {
  if (!file.name.endsWith(".safetensors")) {
    if (file.size > 2 ** 20) throw new Error(`${file.name} is no settings file: it is larger than 1 MiB.`);
    return file.text();
  }
  const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
  if (!(length > 0 && length < 2 ** 26 && length + 8 <= file.size)) throw new Error(`${file.name} is not a whole .safetensors file.`);
  const header = JSON.parse(await file.slice(8, 8 + length).text());
  if (!header.__metadata__) throw new Error(`${file.name} does not say how it was trained.`);
  return JSON.stringify(header.__metadata__);
};
