/* The plan: four figures, the notes, and below them one of several views (views.js). While something is worked out, what
   stands there is pale; so is what is of the last settings that could be used, when those on screen cannot. */
lyco.parts.plan = ({element, props, trigger, watch}) => {
  const {h, fill} = lyco;
  const root = element.querySelector(".plan-root"), body = h("div.view"), figures = h("div.pane.figures", {hidden: true});
  const wrong = h("div.pane.problems", {role: "alert", hidden: true}), mark = h("style");
  const ask = (what, given) => { root.classList.add("waits"); trigger(what, given); };
  lyco.counted = () => { root.classList.remove("waits"); wanted = props.value?.view || ""; choose(wanted); };  // or refused, which was told
  const figure = (value, unit, line, look = "") => h("div", {}, h(`div.v${look}`, {}, value, unit && h("small", {}, ` ${unit}`)), h("div.l.num", {}, line));
  const undo = h("button.link", {onclick: () => ask("undo")}, "Undo");
  const choose = view => tabs.forEach((tab, i) => {
    const on = lyco.VIEWS[i][0] === view;
    tab.classList.toggle("on", on);
    tab.setAttribute("aria-selected", String(on));
  });
  const tabs = lyco.VIEWS.map(([view, label]) => h("button", {role: "tab", onclick: () => { wanted = view; choose(view); ask("look", {asked: {view}}); }}, label));
  const pane = h("div.pane", {}, h("div.above", {}, h("div.views", {role: "tablist", "aria-label": "What to see"}, ...tabs), h("span.note.busy", {role: "status"}, "counting …"), undo), body);
  const time = lyco.timeFigure(ask), trained = lyco.trained();
  let shown = "", wanted = "";

  const above = plan => {
    choose(plan.view);
    tabs.forEach((tab, i) => {
      tab.disabled = !!plan.problems && !["presets", "share"].includes(lyco.VIEWS[i][0]);
      tab.title = tab.disabled ? "Needs settings that can be used" : "";
    });
    undo.hidden = !plan.undo;
    undo.title = plan.undo ? `Back to ${plan.undo}` : "";
  };

  const memory = ({memory: {peak, free, missing, device, known}, batch, side}) => {
    const shows = figure(...lyco.size(peak).split(" "), `${missing ? "of memory at least" : "peak memory, predicted,"} at batch size ${lyco.count(batch)}, ${lyco.count(side)} px; ${lyco.size(free)} free on this ${device}`, peak > free ? ".warn" : "");
    shows.title = known;
    return shows;
  };

  const head = plan => {
    time.show(plan);
    trained.show(plan.trained);
    figures.hidden = false;
    fill(figures, h("div.plan", {},
      figure(lyco.count(plan.parameters), "", `parameters in ${lyco.some(plan.layers, "layer")}`),
      figure(...lyco.size(plan.bytes).split(" "), `${plan.dtype} file, exactly ${lyco.count(plan.bytes)} bytes`),
      memory(plan), time.box),
    plan.by_name ? h("p.note", {}, h("b", {}, plan.model), ` by name alone, at ${plan.side} px. To train it, choose such a model as the base.`) : null,
    trained.box, plan.reminder ? h("p.note", {}, plan.reminder) : null, ...plan.notes.map(text => h("p.note.warn", {}, text)),
    plan.disk.lacking ? h("p.note.warn", {}, `The run would write ${lyco.size(plan.disk.bytes)}, and ${lyco.size(plan.disk.free)} are free on that disk: ${lyco.size(plan.disk.lacking)} too little.`) : null);
  };

  /* What is wrong, and the way to the field that it is about, whichever tab that is on. */
  const told = ({problems, fix, dim}) => fill(wrong, h("b", {}, "These settings cannot be used"),
    ...problems.map(({text, field, tab}) => h("p", {}, /[.!?]$/.test(text) ? text : `${text}.`, field && h("span.note", {}, tab ? ` On the tab ${tab}. ` : " In the panel of the base model. "),
      field && h("button.link", {onclick: () => lyco.goTo(field, tab)}, "Show the field"))),
    fix ? h("p.note", {}, fix) : null,
    dim ? h("div.row", {}, h("button.button", {onclick: () => ask("dim", {dim})}, `Set dim to ${dim}`), h("span.note", {}, "The nearest that is possible on every layer.")) : null,
    figures.hidden ? null : h("p.note", {}, "What is pale below is of the last settings that could be used."));

  const see = plan => {
    if (shown !== plan.view) fill(body);
    lyco.views[plan.view](body, plan.data, {plan, trigger: ask, fresh: shown !== plan.view});
    shown = plan.view;
  };

  const draw = () => {
    const plan = props.value;
    if (!plan) return fill(root, h("p.note", {}, "Working it out"));
    const bad = plan.problems || [];
    wrong.hidden = !plan.problems;
    figures.classList.toggle("past", !!plan.problems);
    body.classList.toggle("past", !!plan.problems && !plan.data);
    mark.textContent = bad.filter(({field}) => field).map(({field}) => `.gradio-container .pane [id="${field}"] :is(input, textarea) { box-shadow: inset 0 0 0 2px var(--bad) !important; }`).join("\n");
    if (!root.contains(pane)) fill(root, mark, wrong, figures, pane);
    if (plan.problems) told(plan);
    else head(plan);
    if (wanted && plan.view !== wanted) return trigger("look", {asked: {view: wanted}});  // worked out before the click
    lyco.counted();
    above(plan);
    if (plan.data) see(plan);
    else if (shown !== plan.view) { fill(body, h("p.note", {}, "To be seen again when the settings can be used.")); shown = ""; }
  };
  watch("value", draw);
  draw();
};

/* Go to a setting's field, through the tab and the fold it is in, or the base model's panel. What is in a closed fold is
   not there yet: all are opened, and closed again where it is not. */
lyco.goTo = async (field, tab) => {
  const target = () => [document.getElementById(field), document.querySelector(`[id^="${field}."]`)].find(e => e?.offsetParent);
  const soon = async (found, tries) => { while (!found() && tries--) await new Promise(done => setTimeout(done, 50)); return found(); };
  if (tab) lyco.tab(tab);
  else if (!target()) document.querySelector("#header .chip")?.click();
  if (!await soon(target, 6)) {
    const closed = [...document.querySelectorAll(".pane button.label-wrap:not(.open)")].filter(fold => fold.offsetParent);
    closed.forEach(fold => fold.click());
    await soon(target, 60);
    closed.filter(fold => !fold.parentElement.contains(target())).forEach(fold => fold.click());
  }
  target()?.scrollIntoView({block: "center"});
  target()?.querySelector("input, textarea, button")?.focus({preventScroll: true});
};

/* Which layers are trained, in a line; opened, how many parameters of which part, and which kinds of layers. */
lyco.trained = () => {
  const {h, fill} = lyco, line = h("summary"), more = h("div"), box = h("details.trained", {}, line, more);
  const kind = ([label, count, names]) => h("li", {title: names}, `${label}: ${lyco.some(count, "layer")}`);
  const show = ({said, parts, kinds, more: notes}) => {
    line.textContent = said;
    fill(more, h("ul.num", {}, ...parts.map(text => h("li", {}, text))), kinds.length ? h("ul.num", {}, ...kinds.map(kind)) : null, ...notes.map(text => h("p.note", {}, text)));
  };
  return {box, show};
};

/* The fourth figure: how long the run takes, from what was measured here; else "unknown", and measuring it. */
lyco.timeFigure = trigger => {
  const {h, fill} = lyco, box = h("div"), value = h("div.v"), line = h("div.l.num"), act = h("button.link"), bar = h("div.progress.small", {hidden: true}, h("i"));
  let timer = null;
  box.append(value, line, h("div.l", {}, act), bar);
  const ago = seconds => seconds < 90 ? "just now" : seconds < 5400 ? `${Math.round(seconds / 60)} min ago` : seconds < 129600 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;
  const watch = async () => {
    const job = await lyco.api("calibration").catch(() => null);
    if (job && (job.state === "running" || job.state === "starting")) {
      const {name = "starting", done = 0, total = 0} = job.stage || {};
      line.textContent = total ? `${name}, ${done} of ${total}` : name;
      bar.hidden = !total;
      bar.firstChild.style.width = `${total ? 100 * done / total : 0}%`;
      timer = setTimeout(watch, 500);
      return;
    }
    timer = null;
    bar.hidden = true;
    if (job?.problem) lyco.toast(`Measuring failed. ${job.problem}`, "bad");
    trigger("look", {asked: {}});
  };
  const pace = steps => steps >= 1 ? `${+steps.toPrecision(2)} steps/s` : `${+(1 / steps).toPrecision(2)} s a step`;
  const show = ({time, steps, epochs, pictures, batches, smaller, buckets, by_name: byName}) => {
    const about = pictures ? `${epochs} times through ${lyco.some(pictures, "picture")}; an epoch is ${batches} ${batches === 1 ? "batch" : "batches"} in ${lyco.some(buckets, "bucket")}${smaller ? `, ${smaller} not full` : ""}` : "no pictures chosen yet";
    line.title = time.known ? about : "";
    if (time.going) {
      fill(value, "…");
      if (!timer) { line.textContent = "starting"; timer = setTimeout(watch, 200); }
    } else if (time.known) {
      fill(value, lyco.duration(time.seconds));
      line.textContent = `training time (${lyco.duration(time.low)} to ${lyco.duration(time.high)}) of ${lyco.count(steps)} steps at ${pace(time.per_second)}${time.without.length ? `, without ${time.without.join(" and ")}` : ""}; measured ${ago(time.ago)}`;
    } else {
      fill(value, "unknown");
      line.textContent = `training time of ${lyco.count(steps)} steps, ${about}`;
    }
    act.hidden = byName || (time.known && !time.going);
    act.textContent = time.going ? "Stop measuring" : "Measure a few steps";
    act.title = time.going ? "" : "Trains a few steps of these settings on this machine and keeps nothing but how long they took";
    act.onclick = () => trigger(time.going ? "halt" : "measure");
  };
  return {box, show};
};
