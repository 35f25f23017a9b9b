/* The comparison: prompts down, contestants across, seeds inside; then wiping, flipping and subtracting two of them. */
lyco.parts.compare = ({element}) => {
  const {h, fill} = lyco;
  const MODES = ["Grid", "Wipe", "Flip", "Difference"];
  const root = element.querySelector(".compare-root");
  const bar = h("div.row"), notes = h("div.notes"), body = h("div");
  const empty = h("div.empty", {}, h("b", {}, "Nothing painted yet"), "Choose two or more contestants above, write prompts, and press Paint: every contestant paints them from the same noise.");
  fill(root, empty, bar, notes, body);
  let data = {id: ""}, wanted = "", mode = "Grid", left = "", right = "", wipe = .5, flipped = false, drawn = "", beside = "";

  const key = (prompt, seed, name) => JSON.stringify([prompt, seed, name]);
  const colour = name => { const others = data.contestants.filter(c => c.name !== "base").map(c => c.name); return name === "base" ? "" : ["a", "b"][others.indexOf(name)] || ""; };
  const urls = () => new Map(data.cells.map(cell => [key(cell.prompt, cell.seed, cell.contestant), cell.url]));
  const pairs = () => data.prompts.flatMap(prompt => data.seeds.map(seed => ({prompt, seed})));

  const open = (prompt, seed, name) => {
    const found = urls(), pictures = [];
    for (const one of pairs()) for (const c of data.contestants) {
      const url = found.get(key(one.prompt, one.seed, c.name));
      if (url) pictures.push({url, title: one.prompt, down: data.contestants.length, here: one.prompt === prompt && one.seed === seed && c.name === name,
        lines: [c.name, c.detail || "", `seed ${one.seed}, ${data.steps} steps, ${data.sampler}, CFG ${data.guidance}`].filter(Boolean), file: `${c.name}-seed-${one.seed}.png`});
    }
    lyco.lightbox(pictures, Math.max(0, pictures.findIndex(p => p.here)));
  };

  /* The seed over each column of pictures; where they stand in several rows, the seeds of each row. */
  const seeds = () => {
    const across = Math.min(4, data.seeds.length), rows = [];
    for (let i = 0; i < data.seeds.length; i += across) rows.push(data.seeds.slice(i, i + across));
    const told = rows.length === 1 ? rows[0].map(seed => h("span", {}, `seed ${seed}`)) : [h("span.whole", {}, `seeds ${rows.map(row => row.join(", ")).join("; ")}`)];
    return [h("span"), ...data.contestants.map(() => h("div.pair.seeds.num", {across}, ...told.map(each => each.cloneNode(true))))];
  };
  const grid = found => h("div.ab", {style: {gridTemplateColumns: `minmax(90px, 150px) repeat(${data.contestants.length}, minmax(120px, calc(${Math.min(4, data.seeds.length)} * (19vh + 4px))))`}},
    h("span"), ...data.contestants.map(c => h(`div.who.${colour(c.name) || "base"}`, {title: `${c.name}\n${c.detail || ""}`}, c.name, h("small", {}, c.detail || " "))),
    ...(data.seeds.length > 1 ? seeds() : []),
    ...data.prompts.flatMap(prompt => [h("div.p", {}, prompt), ...data.contestants.map(c => h("div.pair", {across: Math.min(4, data.seeds.length)},
      ...data.seeds.map(seed => {
        const url = found.get(key(prompt, seed, c.name));
        return url ? h("button.cell", {onclick: () => open(prompt, seed, c.name), title: `${prompt}\n${c.name}, seed ${seed}`}, h("img", {src: url, alt: `${prompt}, ${c.name}, seed ${seed}`}))
          : h("div.cell.empty-cell", {title: `seed ${seed}`});
      })))]));

  const chooser = () => h("div.row.two", {}, ...[["A", () => left, v => left = v], ["B", () => right, v => right = v]].map(([side, get, set]) =>
    h(`label.side.${side.toLowerCase()}`, {}, h("b", {}, side), h("select", {"aria-label": `Contestant ${side}`, onchange: event => { set(event.target.value); draw(true); }},
      ...data.contestants.map(c => h("option", {value: c.name, selected: c.name === get()}, c.name))))),
    mode === "Wipe" ? h("input.wipe", {type: "range", min: 0, max: 1, step: .005, value: wipe, "aria-label": "Position of the edge", oninput: event => move(+event.target.value)}) : null,
    mode === "Flip" ? h("button.button", {onclick: flip, title: "Space"}, flipped ? "Showing B, show A" : "Showing A, show B") : null,
    mode === "Difference" ? h("span.note", {}, "Brighter means more different.") : null);
  const move = value => { wipe = Math.min(1, Math.max(0, value)); body.style.setProperty("--wipe", `${100 * wipe}%`); const input = body.querySelector("input.wipe"); if (input) input.value = wipe; };
  const flip = () => { flipped = !flipped; draw(true); };

  const two = found => h("div", {}, chooser(), h("div.cells", {}, ...pairs().map(({prompt, seed}) => {
    const a = found.get(key(prompt, seed, left)), b = found.get(key(prompt, seed, right));
    if (!a || !b) return h("figure", {}, h("div.cell.empty-cell"), h("figcaption", {}, `${prompt}, seed ${seed}`));
    const caption = h("figcaption", {}, `${prompt}, seed ${seed}`);
    if (mode === "Flip") return h("figure", {onclick: flip}, h("img", {src: flipped ? b : a, alt: caption.textContent}), caption);
    if (mode === "Wipe") {
      const box = h("div.wiped", {onpointermove: event => { const r = box.getBoundingClientRect(); move((event.clientX - r.left) / r.width); }},
        h("img", {src: b, alt: `${right}: ${prompt}`}), h("img.over", {src: a, alt: `${left}: ${prompt}`}), h("span.edge"));
      return h("figure", {}, box, caption);
    }
    const canvas = h("canvas"), mean = h("small.num");
    subtract(a, b, canvas, mean);
    return h("figure", {}, canvas, caption, mean);
  })));

  const load = url => new Promise((done, failed) => { const image = new Image(); image.onload = () => done(image); image.onerror = failed; image.src = url; });
  const subtract = async (a, b, canvas, mean) => {
    const [one, other] = await Promise.all([load(a), load(b)]);
    canvas.width = one.width; canvas.height = one.height;
    const g = canvas.getContext("2d", {willReadFrequently: true});
    const pixels = image => { g.drawImage(image, 0, 0, canvas.width, canvas.height); return g.getImageData(0, 0, canvas.width, canvas.height); };
    const p = pixels(one), q = pixels(other);
    let total = 0;
    for (let i = 0; i < p.data.length; i += 4) {
      const d = (Math.abs(p.data[i] - q.data[i]) + Math.abs(p.data[i + 1] - q.data[i + 1]) + Math.abs(p.data[i + 2] - q.data[i + 2])) / 3;
      total += d;
      p.data[i] = Math.min(255, d * 3); p.data[i + 1] = Math.min(255, d * 1.6); p.data[i + 2] = Math.min(255, d * .6);
    }
    g.putImageData(p, 0, 0);
    mean.textContent = `mean difference ${(total / (p.data.length / 4) / 2.55).toFixed(1)} %`;
  };

  const tools = () => {
    const busy = ["running", "starting"].includes(data.state), total = data.prompts.length * data.seeds.length * data.contestants.length;
    const stage = busy ? (data.stage && data.stage.name !== "painting" ? data.stage.name : `${data.cells.length} of ${total} painted`) : data.state === "stopped" ? "Stopped" : "";
    return [h("div.modes", {role: "tablist"}, ...MODES.map(name => h(name === mode ? "button.button.on" : "button.button", {role: "tab", "aria-selected": String(name === mode),
      onclick: () => { mode = name; draw(true); }}, name))), h("span.note.num", {}, stage),
      busy ? h("div.progress.small", {}, h("i", {style: {width: `${100 * data.cells.length / total}%`}})) : null, h("span.grow"),
      busy ? h("button.button", {onclick: async () => { await lyco.api("stop_comparison", {id: data.id}); look(); }}, "Stop") : null,
      data.grid && data.cells.length ? h("a.button", {href: data.grid, download: "comparison.png", title: data.folder}, "Save grid") : null];
  };

  const draw = force => {
    const here = !!data.id && !!data.contestants;
    empty.hidden = here; bar.hidden = notes.hidden = body.hidden = !here;
    if (!here) return;
    const names = data.contestants.map(c => c.name), trained = names.filter(name => name !== "base");
    if (names.join("\n") !== beside) {  // other contestants: nobody has chosen among them yet
      beside = names.join("\n");
      left = trained[0] || names[0];
      right = trained[1] || names.find(name => name !== left) || names[0];
    }
    const now = JSON.stringify([data.id, data.state, data.cells.length, data.contestants, data.stage, mode, left, right, flipped]);
    if (now === drawn && !force) return;
    drawn = now;
    fill(bar, ...tools());
    fill(notes, data.error ? h("div.card.bad", {role: "alert"}, h("b", {}, "The comparison has ended"), h("p", {}, data.error.message), h("p", {}, data.error.fix)) : null,
      ...data.warnings.map(text => h("p.note.warn", {}, text)));
    const found = urls();
    fill(body, mode === "Grid" ? grid(found) : two(found));
    move(wipe);
  };
  const look = lyco.poll(element, .7, async () => { data = await lyco.api("comparison", {id: wanted}); draw(); });
  lyco.showComparison = id => { wanted = id; drawn = ""; look(); };
  window.addEventListener("keydown", event => {
    if (lyco.typing() || element.offsetParent === null || document.querySelector(".lightbox")) return;
    if (mode === "Flip" && event.key === " ") { event.preventDefault(); flip(); }
    if (mode === "Wipe" && event.key === "ArrowLeft") move(wipe - .02);
    if (mode === "Wipe" && event.key === "ArrowRight") move(wipe + .02);
  });
};
