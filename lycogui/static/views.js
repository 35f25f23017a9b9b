/* The views of the Algorithm tab, each a function (root, data, {plan, trigger, fresh}). A view that is open keeps its
   own fields while the numbers move: `fresh` is true when it has just been opened. */
lyco.VIEWS = [["layers", "Every algorithm"], ["dims", "Size by dim"], ["budget", "What fits"], ["needs", "Memory"],
  ["advice", "Advice"], ["pair", "A and B"], ["presets", "Presets"], ["share", "Share"]];
lyco.views = {};

lyco.views.layers = (root, rows, {plan, trigger}) => {
  const {h, fill} = lyco;
  const most = Math.sqrt(Math.max(1, ...rows.map(row => row.parameters))), size = plan.bytes && lyco.size(plan.bytes);
  const equal = row => row.on || !size ? null : h("button", {title: `Switch to ${row.label} with the settings whose file comes closest to ${size}`,
    onclick: () => trigger("equal", {algo: row.algo})}, "make equal");
  const asked = plan.ask && h("div.card.asked", {role: "alert"}, h("p", {}, plan.ask.text), h("div.row", {},
    h("button.button", {onclick: () => trigger("equal", {algo: plan.ask.algo, far: true})}, `Switch to ${plan.ask.label} all the same`),
    h("button.button", {onclick: () => asked.remove()}, "Stay here")));
  fill(root, asked,
    h("table.algos.sizes.fixed", {}, h("thead", {}, h("tr", {}, h("th.name", {}, "Algorithm"), h("th", {}, "At these settings"),
      h("th.wide", {title: "As long as the square root of the number of parameters, so that small ones can be told apart"}, "Parameters, root scale"),
      h("th.n.count", {}, "Parameters"), h("th.n.size", {}, "File"), h("th.act"))),
    h("tbody", {}, ...rows.map(row => h(row.on ? "tr.on" : "tr", {},
      h("td.name", {}, row.label), h("td.note.settings", {}, row.settings),
      ...(row.problem ? [h("td.note.why", {colSpan: 3, title: row.problem}, h("span", {}, row.on ? "Not possible, see above." : row.problem))] : [
        h("td.wide", {}, h("div.bar", {style: {width: `${Math.max(1, 100 * Math.sqrt(row.parameters) / most)}%`}})),
        h("td.n", {}, lyco.count(row.parameters)), h("td.n", {title: `${lyco.count(row.bytes)} bytes`}, lyco.size(row.bytes))]),
      h("td", {}, equal(row)))))),
    size && h("p.note", {}, "Compare at equal size: ", h("b", {}, "make equal"), ` switches to that algorithm with the dim, its own settings or, where these do not do it, the layers whose file comes closest to ${size}.`));
};

lyco.views.dims = (root, data, {trigger, fresh}) => {
  const {h, fill} = lyco;
  if (fresh) {
    const canvas = h("canvas.curves", {tabIndex: 0, role: "application", "aria-label": "File size over dim, every algorithm: arrow keys walk, Enter takes"}), tip = h("div.tip", {hidden: true, "aria-live": "polite"});
    root.curves = new lyco.Curves(canvas, tip, (algo, dim) => trigger("apply", {values: {"network.algo": algo, "network.dim": dim, "network.options": {}}}));
    fill(root, h("div.chart", {}, canvas, tip), h("p.note", {}, "File size over dim, both axes logarithmic, without metadata; the other settings as they are. A larger point is the dim on screen; algorithms without dim are level. Click a line, or walk with the arrow keys and press Enter, to take that algorithm and dim."));
  }
  root.curves.show(data);
};

lyco.views.budget = (root, data, {trigger, fresh}) => {
  const {h, fill} = lyco;
  if (fresh) {
    const wrong = h("span.note.bad", {role: "alert"}), reset = h("button.link", {onclick: () => trigger("look", {asked: {budget: 0}})});
    const field = h("input", {type: "number", min: .01, step: "any", "aria-label": "Largest file, MiB", onchange: () => {
      wrong.textContent = field.value > 0 ? "" : field.value ? "A size is more than 0 MiB." : "Write a size, such as 40.";
      if (field.value > 0) trigger("look", {asked: {budget: +field.value}});
    }});
    Object.assign(root, {table: h("div.scrolls"), field, wrong, reset});
    fill(root, h("label.row.budget", {}, "The largest file of each algorithm up to", field, "MiB", wrong, reset), root.table);
  }
  const use = fit => h("button", {onclick: () => trigger("apply", {values: fit.changed, asked: {budget: data.limit}})}, "use");
  root.field.value = data.limit;  // also where it follows the file on screen
  root.wrong.textContent = "";
  root.reset.textContent = `the file on screen, ${lyco.size(data.bytes)}`;
  root.reset.hidden = data.own;
  const rated = fit => fit.symbols ? fit.symbols.map((symbol, i) => h("td.star", {title: `${data.aspects[i]}: ${symbol} (${fit.rating})`}, symbol)) : [h("td.note", {colSpan: 6, title: fit.rating}, fit.rating)];
  const row = fit => h(fit.problem ? "tr.off" : "tr", {}, h("td.name", {}, fit.label), ...(fit.problem ? [
    h("td.note.settings", {}, fit.settings), h("td.note.why", {colSpan: 10, title: fit.problem}, h("span", {}, fit.problem))] : [
    h("td.note.settings", {}, fit.settings), h("td.n", {}, lyco.count(fit.parameters)),
    h("td.n", {title: `${lyco.count(fit.file_bytes)} bytes`}, lyco.size(fit.file_bytes)), h("td.n", {}, lyco.size(fit.memory)), ...rated(fit),
    h("td", {}, Object.keys(fit.changed).length ? use(fit) : h("span.note", {title: "These are the settings on screen"}, "now"))]));
  fill(root.table, h("table.algos.sizes.fixed.fits", {}, h("thead", {}, h("tr", {},
    h("th.name", {}, "Algorithm"), h("th", {}, "Settings"), h("th.n.count", {}, "Parameters"), h("th.n.size", {}, "File"), h("th.n.size", {title: "Most memory in use while it trains, everything counted"}, "Peak memory"),
    ...data.aspects.map(text => h("th.star", {title: text}, text.replace(" layers", "").replace("convolutions", "conv."))), h("th.act"))),
    h("tbody", {}, ...data.fits.map(row))),
    h("p.note", {}, "A row that needs other layers than those on screen names them. ★ best, ◉, ●, ▲ least; speed is that of training. ", data.caveat));
};

lyco.views.needs = (root, data, {trigger}) => {
  const {h, fill} = lyco;
  const kinds = ["weights", "cache", "activations", "temporary", "gradients", "optimizer", "adapter", "fixed", "correction"], of = {};
  const items = data.items.filter(item => item.bytes).sort((a, b) => kinds.indexOf(a.kind) - kinds.indexOf(b.kind));
  for (const item of items) item.look = `kind-${item.kind}.look-${of[item.kind] = (of[item.kind] ?? -1) + 1}`;
  const over = data.peak > data.free, needed = data.savings.slice(0, data.enough || 0);
  const take = list => trigger("apply", {values: Object.assign({}, ...list.map(s => s.values))});
  const lowered = () => h("table.algos", {}, h("thead", {}, h("tr", {}, h("th", {}, "Setting"), h("th.n", {}, "Saves"), h("th.n", {title: "With this and all above it"}, "Peak after it and those above"), h("th"))), h("tbody", {}, ...data.savings.map((s, i) => h(over && i < needed.length ? "tr.on" : "tr", {},
    h("td", {}, s.text), h("td.n", {}, lyco.size(s.bytes)), h("td.n", {}, lyco.size(s.peak)),
    h("td", {}, h("button", {onclick: () => take([s])}, "apply"))))));
  fill(root,
    h("p.note", {}, h("b", {}, lyco.size(data.peak)), ` ${data.at}, at the highest moment, ${data.phase}; `, h("b", {}, lyco.size(data.free)), ` of ${lyco.size(data.total)} are free on ${data.name}. ${data.known}`),
    data.missing ? h("p.note.warn", {}, data.missing) : null,
    lyco.memoryBar(data, items),
    h("table.algos.items", {}, h("tbody", {}, ...items.map(item => h("tr", {}, h("td", {}, item.bytes > 0 ? h(`i.swatch.${item.look}`) : h("i.swatch"), item.name), h("td.n", {}, lyco.size(item.bytes)))),
      h("tr.sum", {}, h("td", {}, h("i.swatch"), "together"), h("td.n", {}, lyco.size(data.peak))))),
    over && data.enough === null ? h("p.note.warn", {}, "It does not fit, and no setting below makes it fit. Choose a smaller model or free some memory.") : null,
    data.savings.length ? h("p.h.below", {}, over ? "What would make it fit, the cheapest to give up first" : "What would lower it") : null,
    data.savings.length ? lowered() : null,
    over && needed.length ? h("div.row", {}, h("button.button", {onclick: () => take(needed)}, needed.length > 1 ? `Apply the first ${needed.length}` : "Apply the first")) : null);
};

/* The parts of the peak against what is free. Where that is far more, in a second bar of its own and in words: in one the
   parts could not be told apart. What a correction takes away is spread over all parts. */
lyco.memoryBar = ({peak, free, name}, items) => {
  const {h} = lyco, FAR = 4, far = free > FAR * peak, whole = far ? peak : Math.max(peak, free);
  const share = (bytes, of = whole) => `${(100 * bytes / of).toFixed(2)}%`, parts = items.filter(item => item.bytes > 0);
  const shrunk = peak / parts.reduce((sum, item) => sum + item.bytes, 0), percent = 100 * peak / free;
  const ends = (bytes, at, text) => h("div.ends.num", {}, h("span", {}, "0"), at === null ? null : h("b", {style: at > .7 ? {right: share(1 - at, 1)} : {left: share(at, 1)}, className: at > .7 ? "left" : ""}, text), at > .85 && at !== null ? null : h("span", {}, lyco.size(bytes)));
  return h("div.against", {role: "img", "aria-label": `${lyco.size(peak)} of memory, ${lyco.size(free)} free on ${name}`},
    h("div.stack", {}, ...parts.map(item => h(`i.${item.look}`, {style: {width: share(item.bytes * shrunk)}, title: `${item.name}: ${lyco.size(item.bytes)}`})),
      far ? null : h("b", {style: {left: share(free)}})),
    far ? ends(peak, null) : ends(whole, free / whole, `${lyco.size(free)} free`),
    far ? h("p.note.num", {}, h("b", {}, `${lyco.size(peak)} of ${lyco.size(free)} free: ${percent < 1 ? "less than 1" : Math.round(percent)} %`)) : null,
    far ? h("div.stack.thin", {}, h("i.kind-activations", {style: {width: share(peak, free)}})) : null,
    far ? ends(free, null) : null);
};

lyco.views.advice = (root, data, {trigger}) => {
  const {h, fill} = lyco;
  const card = s => h("div.advice", {}, h("div", {}, h("b", {}, s.does), h("p.note", {}, `${s.why} `, h("i", {}, s.sure))),
    h("div.cost", {}, h("span.num", {title: `now ${lyco.size(data.now)}`}, `file ${lyco.size(s.file_bytes)}`), h("button.button", {onclick: () => trigger("apply", {values: s.changes})}, "Apply")));
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
    chosen && h("p.note", {}, h("b", {}, data.text), ` About ${lyco.size(data.for.peak)} of memory at most on ${data.for.title}, of ${data.for.memory} GB.`),
    chosen && !chosen.length ? h("p.note", {}, "The settings on screen are this preset's.") : null,
    chosen && chosen.length ? h("table.algos.changes", {}, h("thead", {}, h("tr", {}, h("th", {}, "Setting"), h("th", {}, "Now"), h("th", {}, "With the preset"))),
      h("tbody", {}, ...chosen.map(([label, now, then]) => h("tr", {}, h("td", {}, label), h("td.note", {}, now), h("td", {}, then))))) : null,
    chosen && h("p.note", {}, "Where each number comes from stands in the file: ", h("code", {}, `assets/presets/${data.preset}.toml`), "."));
};

lyco.views.pair = (root, data, {plan, trigger}) => {
  const {h, fill} = lyco;
  const [a, b] = data.sides, names = [...new Set([...Object.keys(a.values), ...Object.keys(b.values)])];
  const facts = [["Parameters", s => lyco.count(s.parameters), "parameters"], ["Layers", s => lyco.count(s.layers), "layers"],
    ["File", s => lyco.size(s.bytes), "bytes"], ["Peak memory", s => lyco.size(s.memory), "memory"],
    ["Training time", s => s.time.known ? lyco.duration(s.time.seconds) : "unknown", "time"]];
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
    root.mine = h("div", {}, h("div.row", {}, root.forms, h("span.grow"), h("button.button", {onclick: async () => { await navigator.clipboard.writeText(root.text.textContent); lyco.toast("Copied."); }}, "Copy")),
      root.text, root.unsaid);
    fill(root, root.mine, h("p.h.below", {}, "Take over somebody's settings"),
      h("div", {ondragover: event => event.preventDefault(), ondrop: drop}, paste),
      h("div.row", {}, h("button.button", {onclick: () => paste.value.trim() ? trigger("read", {text: paste.value}) : lyco.toast("Paste something first.")}, "Read into the form")));
  }
  root.mine.hidden = data.text === null;  // what cannot be used is not for others
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
