/* What a tool found or made: facts, a bar for every layer, and where it leads. A job is a folder, so a reload shows the same. */
lyco.parts.tools = ({element, props, trigger, watch}) => {
  const {h, fill} = lyco;
  const EMPTY = {
    inspect: ["Nothing inspected yet", "Choose an adapter on the left: a run of yours, or any .safetensors file from elsewhere."],
    resize: ["Nothing resized yet", "A LoRA of half the dim is half the size. The error says how much of every layer is lost with it."],
    convert: ["Nothing converted yet", "For a program that does not know the algorithm, convert to LoRA; for one that reads other keys, to its keys."],
    merge: ["Nothing merged yet", "Into the base: a model that paints so without any adapter. Into one adapter: several at once, each with its weight."],
    extract: ["Nothing extracted yet", "The base model is the one in the header; the tuned model is one of the same kind that was trained on: a file or a folder."]};
  const WORDS = {new: "", starting: "starting", running: "running", done: "done", stopped: "cancelled", failed: "failed", crashed: "ended unexpectedly"};
  const root = element.querySelector(".tools-root"), main = h("div.pane"), list = h("div.pane"), earlier = h("tbody");
  fill(root, main, list);
  fill(list, h("p.h", {}, "Earlier"), h("table.algos.runs", {}, earlier));
  let data = {id: "", earlier: []}, result = null, drawn = "", told = "", wanted = props.value || {tool: "inspect", id: ""};

  const mib = bytes => bytes < 2 ** 17 ? `${(bytes / 1024).toFixed(1)} KiB` : bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(2)} GiB` : lyco.mib(bytes);
  const percent = (share, short) => share === null || share === undefined ? "unknown" : short ? `${+(100 * share).toPrecision(3)} %` : `${(100 * share).toFixed(share < .001 ? 3 : 2)} %`;
  const number = (value, short) => value === null || value === undefined ? "unknown" : short ? String(+value.toPrecision(3)) : value.toPrecision(4);
  const figure = (value, unit, line) => h("div", {}, h("div.v", {}, value, unit && h("small", {}, ` ${unit}`)), h("div.l.num", {}, line));
  const size = (bytes, line) => figure(...mib(bytes).split(" "), `${line} ${lyco.count(bytes)} bytes`);
  const button = (text, action, title = "", primary = false) => h(primary ? "button.button.on" : "button.button", {onclick: action, title}, text);
  const fact = text => { try { return JSON.parse(text) || {}; } catch (error) { return {}; } };

  /* A title with the file's name, cut where it is too long, and what can be done with it. */
  const head = (name, path, about, ...buttons) => h("div", {}, h("div.run", {}, h("b", {title: path}, name), h("span", {}, about)),
    buttons.some(Boolean) ? h("div.row", {}, ...buttons) : null);

  const bars = (rows, views, empty) => {
    const canvas = h("canvas.bars", {role: "img"}), tip = h("div.tip.num", {hidden: true, "aria-live": "polite"}), note = h("p.note.num"), modes = h("div.modes");
    const plot = new lyco.Bars(canvas, tip);
    const told = views.filter(v => rows.some(row => row[v.key] !== null && row[v.key] !== undefined));
    let view = told[0];
    if (!view) return h("p.note", {}, empty);
    const show = () => {
      const known = lyco.inOrder(rows.map(row => ({...row, name: row.name || row.layer, group: lyco.place(row.name || row.layer)})));
      plot.show(known.map(row => ({name: row.name, group: row.group, value: row[view.key], lines: [`${view.label} ${view.write(row[view.key])}`, ...view.lines(row)]})), view.write);
      const values = known.filter(row => row[view.key] > 0), top = values.reduce((a, b) => b[view.key] > a[view.key] ? b : a, values[0]);
      const unknown = known.filter(row => row[view.key] === null || row[view.key] === undefined).length;
      canvas.setAttribute("aria-label", `${view.label} of ${known.length} layers` + (top ? `, the largest ${view.write(top[view.key])} in ${top.name}` : ""));
      fill(note, top ? [`${view.label} of each layer. The largest is ${view.write(top[view.key])} in `, h("span.mono", {}, top.name), "."] : `${view.label} is zero in every layer.`, unknown ? ` Unknown in ${unknown} of ${known.length} layers.` : "");
      fill(modes, ...(told.length > 1 ? told.map(v => h(v === view ? "button.button.on" : "button.button", {"aria-pressed": String(v === view), onclick: () => { view = v; show(); }}, v.label)) : []));
    };
    show();
    return h("div", {}, modes, h("div.chart", {}, canvas, tip), note);
  };

  /* A table that is long, folded and searchable. */
  const folded = (title, columns, rows, open = false) => {
    const body = h("tbody"), count = h("span.note.num"), search = h("input.filter", {type: "search", placeholder: "Search", "aria-label": `Search in ${title}`});
    const draw = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = rows.filter(row => words.every(word => row.some(cell => cellText(cell).toLowerCase().includes(word))));
      fill(count, words.length ? `${found.length} of ${rows.length}` : "");
      fill(body, ...found.slice(0, 2000).map(row => h("tr", {}, ...row.map((cell, i) => h(columns[i].right ? "td.n" : "td", {}, cell instanceof Node ? cell.cloneNode(true) : cell)))));
    };
    const cellText = cell => cell instanceof Node ? cell.textContent : String(cell ?? "");
    search.addEventListener("input", draw);
    const box = h("details", {open}, h("summary", {}, title), rows.length > 8 ? h("div.row.search", {}, search, count) : null,
      h("div.scroller", {}, h("table.algos.facts-table", {}, h("thead", {}, h("tr", {}, ...columns.map(c => h(c.right ? "th.n" : "th", {}, c.name)))), body)));
    draw();
    return box;
  };
  const pretty = text => { try { const value = JSON.parse(text); return typeof value === "object" && value !== null ? JSON.stringify(value, null, 1) : text; } catch (error) { return text; } };
  const layers = (rows, more) => folded(`Layers (${rows.length})`, [{name: "Layer"}, {name: "Algorithm"}, {name: "Dim", right: true}, {name: "Alpha", right: true}, {name: "Parameters", right: true}, ...more.map(m => ({name: m.name, right: true}))],
    lyco.inOrder(rows.map(row => ({...row, name: row.name || row.layer, group: lyco.place(row.name || row.layer)}))).map(row => [h("span.mono", {}, row.name), row.algorithm + (row.dora ? ", DoRA" : ""), row.dim || "", row.alpha ?? "", lyco.count(row.parameters ?? 0), ...more.map(m => m.write(row))]));

  const inspected = () => {
    const meta = result.metadata || {}, name = result.file.split(/[\\/]/).at(-1);
    const alphas = [...new Set((result.rows || []).map(row => row.alpha).filter(alpha => alpha !== null && alpha !== undefined))].map(alpha => +alpha.toPrecision(4)).sort((a, b) => a - b);
    const made = result.made, args = fact(meta.ss_network_args);
    const facts = [
      ["Algorithm", result.summary], ["Trained as", result.trained_as], ["Alpha", alphas.length > 1 ? `${alphas[0]} to ${alphas.at(-1)}` : alphas.join()], ["Factor", args.factor], ["Layers", lyco.count(result.layers)], ["Parameters", lyco.count(result.parameters)],
      ["File", h("span", {}, mib(result.bytes), h("small", {}, ` ${lyco.count(result.bytes)} bytes`))],
      ["Precision", (result.dtypes || []).map(name => ({F16: "fp16", BF16: "bf16", F32: "fp32"}[name] || name)).join(", ")], ["Keys", result.dialect],
      ["Norm of all layers", number(result.total_norm)], ["Trained on", meta.ss_sd_model_name || meta["modelspec.architecture"]],
      ["Steps", meta.ss_steps && lyco.count(+meta.ss_steps)], ["Learning rate", meta.ss_learning_rate], ["Pictures", meta.ss_num_train_images],
      ["Trigger words", (result.trigger || []).join(", ")], ["Date", (meta["modelspec.date"] || "").replace("T", " ")], ["Author", meta["modelspec.author"]],
      ["Made by", made && [made.verb, made.rule].filter(Boolean).join(", ")]].filter(([, value]) => value);
    const match = result.match, off = Object.keys(result.left_out || {}).length;
    const recipe = result.recipe, lost = (recipe || []).filter(row => row.missing);
    return [
      head(name, result.file, "",
        recipe && button("Load into the form", () => trigger("recipe", {id: data.id}), "Writes every setting of its training into the form"),
        recipe && button("Train again with these settings", () => trigger("again", {id: data.id}), "A new run with exactly these settings"),
        recipe && button("New run from it", () => trigger("proceed", {adapter: result.file}), "A new run that starts as this adapter: fills the form"),
        match?.matched ? button("Compare with the base", () => trigger("compare", {runs: data.sources})) : null),
      match && !match.whole ? h("p.note.warn", {}, `${match.text[0].toUpperCase()}${match.text.slice(1).replace(/\.$/, "")}.`) : null,
      off ? h("p.note.warn", {}, `${off} tensors are not read, the first is ${Object.keys(result.left_out)[0]}.`) : null,
      result.needs_base?.length ? h("p.note.warn", {}, `The strength of ${lyco.count(result.needs_base.length)} layers depends on the base they were trained on: choose it in the header and inspect again.`) : null,
      h("dl.facts-grid", {}, ...facts.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd.num", {title: typeof value === "string" ? value : ""}, value)))),
      bars(result.rows || [], [
        {key: "norm", label: "Norm", write: number, lines: row => [`${row.algorithm}${row.dora ? ", DoRA" : ""}`, row.dim ? `dim ${row.dim}${row.alpha === null ? "" : `, alpha ${+row.alpha.toPrecision(4)}`}` : "", `${lyco.count(row.parameters)} parameters`].filter(Boolean)},
        {key: "parameters", label: "Parameters", write: value => lyco.count(Math.round(value ?? 0)), lines: row => [row.algorithm]}], "No layer's strength is known without its base model."),
      recipe ? folded(`Recipe (${recipe.filter(row => row.changed).length} settings differ from the defaults)`, [{name: "Setting"}, {name: "Value"}],
        [...recipe].sort((a, b) => b.changed - a.changed).map(row => [h(row.changed ? "b" : "span", {title: row.path}, row.label, h("small", {}, ` ${row.path}`)), h(row.missing ? "span.warn" : "span", {}, row.value, row.missing ? " (not on this machine)" : "")]))
        : h("p.note", {}, "The file does not say with which settings it was trained."),
      recipe && result.recipe_of_source ? h("p.note", {}, "The recipe is that of the adapter it was made from.") : null,
      lost.length ? h("p.note.warn", {}, lost.map(row => `${row.label} ${row.value} is not on this machine; it stays in the settings as it stands.`).join(" ")) : null,
      (result.tags || []).length ? folded(`Caption words (${result.tags.length})`, [{name: "Words"}, {name: "Pictures", right: true}], result.tags.map(([tag, n]) => [tag, lyco.count(n)])) : null,
      layers(result.rows || [], [{name: "Norm", write: row => number(row.norm)}]),
      folded(`Metadata (${Object.keys(meta).length})`, [{name: "Key"}, {name: "Value"}], Object.entries(meta).map(([key, value]) => [h("span.mono", {}, key), h("pre", {}, pretty(value))]))];
  };

  const made = () => {
    const name = result.out.split(/[\\/]/).at(-1), whole = data.whole, gone = result.exists === false;
    const before = data.before && !whole ? size(data.before, "before, exactly") : figure(lyco.count(result.layers.length), "layers", whole ? "changed" : "in the file");
    const error = result.error === null || result.error === undefined ? null : figure(...percent(result.error).split(" "), "error: what is lost of all layers together");
    const was = row => [row.from, row.dim ? `${row.algorithm}, dim ${row.dim}` : row.algorithm].filter(Boolean).join(" → ");
    const views = [{key: "error", label: "Error", write: percent, lines: row => [was(row), row.norm ? `Norm ${number(row.norm)}` : ""].filter(Boolean)},
      {key: "dim", label: "Dim", write: value => String(Math.round(10 * (value ?? 0)) / 10), lines: row => [was(row)].filter(Boolean)},
      {key: "norm", label: "Norm", write: number, lines: row => [row.adapters ? row.adapters.map((a, i) => `${a} at ${row.weights[i]}`).join(", ") : was(row)].filter(Boolean)}];
    return [
      head(name, result.out, result.summary,
        whole ? button("Use it as the base", () => trigger("base", {folder: result.out}), "Makes it the base model in the header", true)
          : button("Inspect it", () => trigger("inspect", {adapter: result.out}), "", true),
        whole ? null : button(data.sources.length ? data.sources.length > 1 ? "Compare with the originals" : "Compare with the original" : "Compare with the base", () => trigger("compare", {runs: [...data.sources, result.out]})),
        button("Copy its path", async () => { await navigator.clipboard.writeText(result.out); lyco.toast("Copied."); }, result.out)),
      gone ? h("p.note.warn", {}, `It is no longer at ${result.out}.`) : null,
      h("div.plan.results", {}, before, size(result.bytes, whole ? "on disk," : data.before ? "now, exactly" : "exactly"), error,
        whole ? figure(lyco.count(result.files.length), result.files.length === 1 ? "file" : "files", "rewritten, the others as they were") : figure(lyco.count(result.parameters), "", `parameters, ${result.dtype}, ${result.dialect} keys`)),
      ...(result.notes || []).map(text => h("p.note.warn", {}, text)),
      data.before && !whole && data.tool === "resize" && result.bytes > data.before ? h("p.note.warn", {}, "It is larger than before: what took few numbers takes many as a LoRA. Use the original wherever a program reads it.") : null,
      result.error > .3 ? h("p.note.warn", {}, `${percent(result.error)} of the change is lost: it will paint visibly differently. Raise dim, or keep a share of the norm.`) : null,
      bars(result.layers, views.filter(v => result.layers.some(row => row[v.key] > 0) || v.key === "error"), "No layer changed."),
      whole ? folded(`Files rewritten (${result.files.length})`, [{name: "File"}], result.files.map(file => [h("span.mono", {}, file)])) : layers(result.layers, [{name: "Norm", write: row => number(row.norm)}, {name: "Error", write: row => percent(row.error)}]),
      h("p.note.path", {title: result.out}, result.out)];
  };

  const busy = () => {
    const stage = data.stage, share = stage?.total ? stage.done / stage.total : 0;
    return [h("div.run", {}, h("b", {title: data.title}, data.title), h("span", {}, stage ? stage.total ? `${stage.name}, ${lyco.count(stage.done)} of ${lyco.count(stage.total)}` : stage.name : "starting")),
      h("div.progress", {role: "progressbar", "aria-valuenow": Math.round(100 * share)}, h("i", {style: {width: `${100 * share}%`}})),
      h("div.row", {}, button("Cancel", async () => { try { await lyco.api("cancel_tool", {id: data.id}); } catch (error) { lyco.toast(error.message, "bad"); } look(); }))];
  };
  const ended = () => {
    const error = data.error;
    return [h("div.run", {}, h("b", {title: data.title}, data.title), h("span", {}, WORDS[data.state] || data.state)),
      error ? h("div.card.bad", {role: "alert"}, h("b", {}, error.kind === "bug" ? "This is a bug in lycogui" : "It has ended"), h("p", {}, error.message), h("p", {}, error.fix)) : null,
      data.state === "crashed" ? h("div.card.bad", {role: "alert"}, h("b", {}, "The engine is gone"), h("p", {}, "Its process ended without a word. Nothing was written.")) : null,
      data.state === "stopped" ? h("p.note", {}, "Cancelled; nothing was written.") : null,
      data.log ? h("details", {}, h("summary", {}, "Log"), h("pre.log", {}, data.log)) : null];
  };

  const row = job => h(job.id === data.id ? "tr.on" : "tr", {tabIndex: 0, onclick: () => { wanted = {tool: job.tool, id: job.id}; look(); }, onkeydown: event => event.key === "Enter" && event.currentTarget.click()},
    h("td", {title: job.title}, h("b", {}, job.title)), h("td", {title: job.error?.message || ""}, h(`span.state.${job.state}`, {}, WORDS[job.state] || job.state)),
    h("td.n.note", {}, job.at ? new Date(job.at * 1000).toLocaleString([], {month: "short", day: "numeric", hour: "2-digit", minute: "2-digit"}) : ""));

  const draw = () => {
    const now = JSON.stringify([wanted.tool, data.id, data.state, data.stage, data.warnings, data.error, data.earlier, !!result]);
    if (now === drawn) return;
    drawn = now;
    list.hidden = !data.earlier.length;
    fill(earlier, ...data.earlier.map(row));
    const going = ["running", "starting", "new"].includes(data.state);
    if (!data.id) fill(main, h("div.empty", {}, h("b", {}, EMPTY[wanted.tool][0]), EMPTY[wanted.tool][1]));
    else if (going) fill(main, ...busy().filter(Boolean));
    else if (data.state === "done" && result) fill(main, ...(data.tool === "inspect" ? inspected() : made()).filter(Boolean));
    else fill(main, ...ended().filter(Boolean));
    main.dataset.state = data.id ? data.state : "empty";
    main.dataset.tool = data.tool || "";
    if (data.id && !going && told !== data.id) { if (told !== "" || data.tool !== "inspect") trigger("done"); told = data.id; }
  };
  const look = lyco.poll(element, .8, async () => {
    const found = await lyco.api("tool", {...wanted, have: result ? data.id : ""});
    if (found.id !== data.id) result = null;
    data = found;
    if (found.result) result = found.result;
    draw();
  });
  watch("value", () => {
    wanted = props.value; result = null; data = {id: "", earlier: data.earlier};
    if (wanted.id && main.getBoundingClientRect().top < 0) main.scrollIntoView();
    look();
  });
};
