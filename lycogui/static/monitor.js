/* The run on screen: its line, curve, buttons and samples; the queue and the earlier runs. Everything is read from
   the run folders, so a reload or a second window shows the same. */
lyco.parts.monitor = ({element, trigger}) => {
  const {h, fill} = lyco;
  const WORDS = {new: "not started", waiting: "waiting", starting: "starting", running: "running", done: "finished", stopped: "stopped", failed: "failed", crashed: "ended unexpectedly"};
  const line = h("div.run"), progress = h("div.progress", {}, h("i")), key = h("div.key"), canvas = h("canvas.loss", {role: "img", "aria-label": "Loss over steps"});
  const tip = h("div.tip", {hidden: true}), notes = h("div.notes"), buttons = h("div.row"), byTimestep = h("div", {hidden: true}), strip = h("div.strip"), table = h("tbody");
  const logText = h("pre.log"), log = h("details", {}, h("summary", {}, "Log"), logText);
  const logBox = h("label.check", {}, h("input", {type: "checkbox", onchange: event => { plot.log = event.target.checked; plot.draw(); }}), "log scale");
  const samples = h("div.pane", {}, h("p.h", {}, "Samples while training"), strip);
  const main = h("div.pane", {}, line, progress, notes, key, h("div.chart", {}, canvas, tip), buttons, byTimestep, log);
  const empty = h("div.pane", {}, h("div.empty", {}, h("b", {}, "No run yet"), "The settings on the left work as they are: press Train."));
  const whole = h("span.num"), list = h("div.pane", {}, h("p.h", {}, "Queue and earlier runs", whole), h("table.algos.runs", {}, h("thead", {}, h("tr", {}, h("th", {}, "Run"), h("th", {}, "State"), h("th.n", {}, "Step"),
    h("th.n", {title: "Its moving mean at the last step"}, "Loss"), h("th.n", {title: "The file that training has made"}, "Adapter"), h("th.n", {title: "The whole folder: states, checkpoints, pictures, adapter"}, "On the disk"), h("th"))), table));
  fill(element.querySelector(".monitor-root"), empty, main, samples, list);
  const plot = new lyco.Plot(canvas, tip), looks = new lyco.Looks(byTimestep);
  const held = new Map();  // id -> what follow has told so far
  let runs = [], queue = [], chosen = "", beside = new Set(), drawnSamples = "", drawnRows = "", picked = false;

  const short = run => run.error ? run.error.message : run.stage && run.state === "running" ? run.stage.name : "";
  const say = async (run, what) => {
    try { await lyco.api("ask", {run: run.id, what}); } catch (error) { lyco.toast(error.message, "bad"); return look(); }
    if (what === "up" || what === "down") return look();
    lyco.toast({stop: run.stage?.name.startsWith("saving") ? "It finishes the file, then stops." : "It stops before the next step, and saves.", cancel: `It leaves out ${run.stopping?.cancels}; one from before stays.`, save: "It saves before the next step.", sample: "It paints before the next step.", pause: "It holds before the next step; memory stays taken.", resume: run.paused ? "It goes on." : "In the queue.", withdraw: "Taken out of the queue."}[what] || "", "note");
    look();
  };
  const button = (text, action, title = "") => h("button.button", {onclick: action, title}, text);
  const more = run => button("Continue …", () => asked(lyco.extend(run, look)), "With more steps, other samples or checkpoints");
  /* After the loss has left all bounds, going on as before would lead there again. */
  const lower = run => button("Continue with a lower learning rate …", () => asked(lyco.extend(run, look, {"optimizer.lr": rate => +(rate / 3).toPrecision(2)})), "From the last checkpoint; the dialog begins with a third of the rate");
  const asked = dialog => dialog.catch(error => lyco.toast(error.message, "bad"));
  const actions = run => ({
    running: run.stopping ? [run.stopping.cancels ? button(`Leave out ${run.stopping.cancels}`, () => say(run, "cancel"), "Ends at once, without writing it; the adapter and the state are saved") : null].filter(Boolean) : [button("Stop and save", () => say(run, "stop")), run.paused ? button("Resume", () => say(run, "resume")) : button("Pause", () => say(run, "pause"), "Holds between two steps; what it has loaded stays in memory"),
      button("Sample now", () => say(run, "sample")), button("Save now", () => say(run, "save"))],
    starting: [button("Stop", () => say(run, "stop"))],
    waiting: [button("Take out of the queue", () => say(run, "withdraw"))],
    stopped: [button("Resume", () => say(run, "resume")), more(run)], crashed: [button("Resume", () => say(run, "resume")), more(run)],
    failed: run.error?.lower_rate ? [lower(run)] : [button("Resume", () => say(run, "resume"), "Goes on from the last checkpoint"), more(run)], new: [button("Start", () => say(run, "resume"))], done: [more(run)],
  }[run.state] || []);

  /* Blue is A and orange is B: a pair's own sides first, then the order on screen. */
  const colours = () => {
    const shown = [chosen, ...beside].filter(id => held.has(id)), free = ["--a", "--b"], found = new Map();
    for (const id of shown) { const side = held.get(id).pair?.side; if (side && free.includes(`--${side}`)) { found.set(id, `--${side}`); free.splice(free.indexOf(`--${side}`), 1); } }
    for (const id of shown) if (!found.has(id)) found.set(id, free.shift() || "--body-text-color-subdued");
    return found;
  };

  const take = async id => {
    const had = held.get(id) || {points: [], seen: 0, resumes: 0};
    const now = await lyco.api("follow", {run: id, steps: had.seen, resumes: had.resumes, log: id === chosen && log.open});
    const points = now.reset ? now.points : had.points.concat(now.points);
    held.set(id, {...now, points});
  };

  const draw = () => {
    const run = held.get(chosen);
    empty.hidden = !!run || runs.length > 0; main.hidden = !run; list.hidden = !runs.length; samples.hidden = !run?.samples.length;
    if (run) drawRun(run);
    const rows = [...runs].sort((a, b) => turn(a) - turn(b)), now = JSON.stringify([rows, queue, chosen, [...beside]]);
    if (now === drawnRows) return;
    drawnRows = now;
    whole.textContent = runs.length > 1 ? `, ${lyco.memory(runs.reduce((sum, run) => sum + run.disk, 0))} on disk` : "";
    const focused = table.contains(document.activeElement) ? document.activeElement.dataset.key : "";  // rows are made anew, who works by keyboard stays where they are
    fill(table, ...rows.map(row));
    if (focused) { const again = [...table.querySelectorAll("[data-key]")].find(e => e.dataset.key === focused); (again?.disabled ? again.parentElement.querySelector("button:enabled") : again)?.focus(); }
  };
  const drawRun = run => {
    const done = run.total ? run.step / run.total : 0, facts = [h("b", {title: run.folder}, run.name), h("span", {}, run.about)];
    if (run.state === "running" && run.stage) facts.push(h("span", {}, (run.stage.total ? `${run.stage.name}, ${run.stage.done} of ${run.stage.total}` : run.stage.name) + (run.stage_left ? `, ${lyco.time(run.stage_left)} left` : "")));
    if (run.stopping) facts.push(h("span", {}, "finishing the files, then stopping"));
    if (run.state !== "running" || run.paused) facts.push(h("span", {}, run.paused ? "paused" : WORDS[run.state]));
    if (run.state === "done") facts.push(h("span", {}, `${lyco.count(run.step)} steps`));
    else if (run.step || run.state === "running") facts.push(h("span", {}, `step ${lyco.count(run.step)} of ${lyco.count(run.total)}`));
    if (run.pace) facts.push(h("span", {}, run.pace < 1 ? `${(1 / run.pace).toFixed(1)} steps/s` : `${run.pace.toFixed(1)} s/step`));
    if (run.loss_avg !== null) facts.push(h("span", {}, `loss ${run.loss_avg.toFixed(4)}`));
    if (run.validation !== null) facts.push(h("span", {title: "On the pictures that are held out"}, `val/loss ${run.validation.toFixed(4)}`));
    if (run.cached && run.cached.bytes >= 2 ** 20) facts.push(h("span", {title: `${run.cached.folder}, ${lyco.count(run.cached.files)} files, of this run and of others`}, `${lyco.memory(run.cached.bytes)} in the cache`));
    if (run.measured) facts.push(h("span", {title: "The highest memory of the run as it was predicted before it, and as it was; the next prediction knows"}, `${lyco.memory(run.measured.predicted)} of memory predicted, ${lyco.memory(run.measured.memory)} measured`));
    else if (run.memory) facts.push(run.on_card ? h("span", {title: "The highest so far that PyTorch has taken on the card"}, `${lyco.memory(run.memory)} of memory on the card`)
      : h("span", {title: "The highest so far of the whole process, Python and its libraries included. The prediction, and what is measured at the end, are of the run alone."}, `${lyco.memory(run.memory)} of memory in the whole process`));
    if (run.norms) facts.push(h("span", {title: "Frobenius norms of the layers' scaled changes; max norm shrinks the longest"},
      `norms ${run.norms.mean.toPrecision(2)} mean, ${run.norms.most.toPrecision(2)} most, ${run.norms.capped} layers shrunk`));
    facts.push(run.state === "running" ? run.left !== null && !run.paused && h("span", {}, `${lyco.time(run.left)} left`) : run.seconds ? h("span", {}, `${lyco.time(run.seconds)} of training`) : null);
    if (run.bytes) facts.push(h("span", {title: `The adapter: ${lyco.count(run.bytes)} bytes`}, `file ${lyco.mib(run.bytes)}`));
    fill(line, ...facts);
    progress.firstChild.style.width = `${100 * done}%`;
    progress.classList.toggle("still", run.state !== "running" && run.state !== "done" || run.paused);
    fill(notes, run.error ? h("div.card.bad", {role: "alert"}, h("b", {}, run.error.kind === "bug" ? "This is a bug in lycogui" : "The run has ended"), h("p", {}, run.error.message), h("p", {}, run.error.fix)) : null,
      run.state === "crashed" ? h("div.card.warn", {}, h("b", {}, "The engine is gone"), h("p", {}, "Its process ended without a word, after a power cut perhaps. Resume goes on from the last checkpoint; the log below has its last lines.")) : null,
      ...run.warnings.map(text => h("p.note.warn", {}, text)));
    const paint = colours(), all = [...paint].map(([id, colour]) => ({...held.get(id), colour}));
    fill(key, ...[...paint].map(([id, colour]) => h("span", {title: held.get(id).name}, h("i", {style: {background: `var(${colour})`}}), held.get(id).name)),
      h("span.what", {}, "Faint: each step, bold: its moving mean" + (all.some(one => one.validations.length) ? ", dashed: on pictures held out" : "") + ". ● picture ▪ checkpoint ▲ resumed" + (paint.size === 2 ? ". A − B: of the means" : "")), h("span.grow"), logBox);
    canvas.classList.toggle("two", paint.size === 2);
    looks.show(all);
    plot.show(all.map(one => {
      const steps = [...new Set(one.samples.map(s => s.step))];
      return {name: one.name, colour: one.colour, points: one.points, validations: one.validations, total: one.total, marks: [
        ...steps.filter(Boolean).map(step => ({step, kind: "sample"})), ...one.saves.map(step => ({step, kind: "save"})), ...one.resumed_at.map(step => ({step, kind: "resume"}))]};
    }));
    const pair = [...beside].find(id => held.has(id) && partner(run).includes(id)) || [...beside].find(id => held.has(id)) || "";
    const wanted = actions(run), text = [...wanted.map(b => b.textContent), run.id, run.state, !!run.bytes, pair, !!run.step].join();
    if (buttons.dataset.text !== text) {
      fill(buttons, ...wanted, run.bytes ? button("Compare", () => trigger("compare", {runs: [...runs.filter(r => r.bytes && partner(run).includes(r.id)), run].map(r => r.folder)})) : null,
        run.bytes ? button("Inspect", () => trigger("inspect", {adapter: run.folder}), "Its layers, metadata and recipe, on the Tools tab") : null,
        run.step || run.error ? h("a.button", {href: `/lyco/report/${run.id}${pair ? `?with=${pair}` : ""}`, target: "_blank", rel: "noopener", title: pair ? "Both runs and their difference as one page, in a new tab; save it from there" : "Settings, curves, samples, size, time and memory as one page, in a new tab; save it from there"}, "Report") : null,
        button("Load into the form", () => trigger("settings", {run: run.folder}), "Writes every setting of this run into the form"),
        run.bytes ? button("New run from it", () => trigger("proceed", {adapter: run.folder}), "A new run that starts as this adapter: fills the form") : null,
        ["running", "starting", "waiting"].includes(run.state) ? null : button("Delete …", () => asked(lyco.deleteRun(run, look)), "Its folder, after a question"));
      if (buttons.dataset.text && picking !== run.id) rest();
      buttons.dataset.text = text;
    }
    if (picking === run.id) picking = "";
    logText.textContent = run.log || "Nothing in it.";
    drawStrip(run);
  };
  /* Other buttons have come under the pointer by themselves: the second of two quick clicks is not meant for them. */
  let resting = 0;
  const rest = () => {
    buttons.inert = true;
    clearTimeout(resting);
    resting = setTimeout(() => { buttons.inert = false; }, 1000);
  };
  const drawStrip = run => {
    const now = run.id + run.samples.map(s => s.url).join();
    if (now === drawnSamples) return;
    const end = strip.scrollLeft + strip.clientWidth >= strip.scrollWidth - 40 || !drawnSamples.startsWith(run.id);
    drawnSamples = now;
    /* A row a prompt: the base's picture, which stays in sight, then the adapter's as it learns. */
    const steps = [...new Set(run.samples.filter(s => !s.base).map(s => s.step))].sort((a, b) => a - b), indices = [...new Set(run.samples.map(s => s.index))].sort((a, b) => a - b);
    const cells = indices.flatMap(index => [run.samples.find(s => s.base && s.index === index), ...steps.map(step => run.samples.find(s => !s.base && s.index === index && s.step === step))]);
    const title = s => s.base ? "base" : s.step ? `step ${s.step}` : "before";
    const shown = cells.filter(Boolean), pictures = shown.map(s => ({url: s.url, title: s.prompt, down: steps.length + 1,
      lines: [s.base ? "base model" : `step ${s.step}`, `seed ${s.seed}`], file: `${run.name}-${title(s).replace(" ", "-")}.png`}));
    strip.style.setProperty("--columns", steps.length + 1);
    fill(strip, ...cells.map(s => !s ? h("span") : h(s.base ? "figure.base" : "figure", {title: s.prompt},
      h("button", {onclick: () => lyco.lightbox(pictures, shown.indexOf(s)), "aria-label": `${title(s)}: ${s.prompt}`},
        h("img", {src: s.url, alt: `${s.prompt}, ${title(s)}`, loading: "lazy"})),
      h("figcaption.num", {}, h("b", {}, title(s)), s.prompt))));
    if (end) strip.scrollLeft = strip.scrollWidth;
  };
  /* What runs first, then the queue in its order, then the earlier runs as they come: the newest first. */
  const turn = run => ["running", "starting"].includes(run.state) ? 0 : queue.includes(run.id) ? 1 + queue.indexOf(run.id) : 1 + queue.length;
  const word = run => run.paused && run.state === "running" ? "paused" : WORDS[run.state] || run.state;
  const row = run => {
    const place = queue.indexOf(run.id);
    return h(run.id === chosen ? "tr.on" : "tr", {onclick: () => pick(run), tabIndex: 0,
      "data-key": run.id,
      onkeydown: event => event.key === "Enter" && event.target === event.currentTarget && event.currentTarget.click()},
      h("td", {title: run.folder}, h("b", {}, run.name), h("div.note", {}, run.about)),
      h("td", {title: short(run)}, h(`span.state.${run.paused ? "paused" : run.state}`, {}, place >= 0 ? `waiting, number ${place + 1}` : word(run))),
      h("td.n", {}, `${lyco.count(run.step)} / ${lyco.count(run.total)}`), h("td.n", {}, run.loss_avg === null ? "" : run.loss_avg.toFixed(4)),
      h("td.n", {title: run.bytes ? `${lyco.count(run.bytes)} bytes` : ""}, run.bytes ? lyco.mib(run.bytes) : ""),
      h("td.n.note", {}, lyco.memory(run.disk)),
      h("td", {}, place < 0 || queue.length < 2 ? null : h("span.moves", {}, mover(run, "up", "▲", "Earlier", place === 0), mover(run, "down", "▼", "Later", place === queue.length - 1)),
        run.id === chosen || run.loss_avg === null ? null : h("button", {"data-key": `${run.id} curve`, title: "Draw its curve over the other", onclick: event => {
        event.stopPropagation(); beside.has(run.id) ? beside.delete(run.id) : beside.add(run.id); look();
      }}, beside.has(run.id) ? "hide curve" : "show curve")));
  };
  /* A run of the table on screen, with its curve in sight. */
  let picking = "";
  const pick = async run => {
    chosen = picking = run.id; picked = true; beside = new Set(partner(run));
    await look();
    if (main.getBoundingClientRect().top < 0) main.scrollIntoView({behavior: "smooth"});
  };
  const mover = (run, what, sign, text, disabled) => h("button", {"data-key": `${run.id} ${what}`, disabled, title: `${text} in the queue`, "aria-label": `${run.name}: ${text.toLowerCase()} in the queue`,
    onclick: event => { event.stopPropagation(); say(run, what); }}, sign);
  const home = run => run.folder.slice(0, -run.name.length);
  const partner = run => runs.filter(r => r.name === run.pair?.with && home(r) === home(run)).map(r => r.id);

  /* A run that begins comes on screen, but not over an earlier one that somebody is looking at. */
  let active = "";
  const look = lyco.poll(element, 1, async () => {
    ({runs, queue} = await lyco.api("all_runs"));
    const going = runs.find(r => r.state === "running" || r.state === "starting");
    if (going && going.id !== active) {
      if (!picked || chosen === active) { chosen = going.id; beside = new Set(partner(going)); }
      active = going.id;
    }
    if (going?.id === chosen) picked = false;
    if (!runs.some(r => r.id === chosen)) { chosen = runs[0]?.id || ""; beside = new Set(runs[0] ? partner(runs[0]) : []); }
    for (const id of [chosen, ...beside].filter(id => runs.some(r => r.id === id))) await take(id);
    draw();
  });
  log.addEventListener("toggle", look);
  lyco.lookAtRuns = () => { picked = false; look(); };
};
