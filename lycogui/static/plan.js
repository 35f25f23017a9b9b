/* The plan: four figures, the notes, and below them one of several views (views.js). */
lyco.parts.plan = ({element, props, trigger, watch}) => {
  const {h, fill} = lyco;
  const root = element.querySelector(".plan-root"), body = h("div.view"), figures = h("div.pane");
  const figure = (value, unit, line, look = "") => h("div", {}, h(`div.v${look}`, {}, value, unit && h("small", {}, ` ${unit}`)), h("div.l.num", {}, line));
  const undo = h("button.link", {onclick: () => trigger("undo")}, "Undo");
  const tabs = lyco.VIEWS.map(([view, label]) => h("button", {role: "tab", onclick: () => { wanted = view; trigger("look", {asked: {view}}); }}, label));
  const pane = h("div.pane", {}, h("div.above", {}, h("div.views", {role: "tablist", "aria-label": "What to see"}, ...tabs), undo), body);
  const time = lyco.timeFigure(trigger);
  let shown = "", wanted = "";

  const above = plan => {
    tabs.forEach((tab, i) => {
      const on = lyco.VIEWS[i][0] === plan.view;
      tab.classList.toggle("on", on);
      tab.setAttribute("aria-selected", String(on));
    });
    undo.hidden = !plan.undo;
    undo.title = plan.undo ? `Back to ${plan.undo}` : "";
  };

  const memory = ({peak, free, missing, device}) => {
    const over = peak > free;
    return figure(...lyco.memory(peak).split(" "), `${missing ? "of memory at least" : "peak memory"}, ${lyco.memory(free)} free on this ${device}`, over ? ".warn" : "");
  };

  const head = plan => {
    time.show(plan);
    fill(figures, h("div.plan", {},
    figure(lyco.count(plan.parameters), "", `parameters in ${lyco.some(plan.layers, "layer")}`),
    figure((plan.bytes / 2 ** 20).toFixed(2), "MiB", `${plan.dtype} file, exactly ${lyco.count(plan.bytes)} bytes`),
    memory(plan.memory), time.box),
    plan.by_name ? h("p.note", {}, h("b", {}, plan.model), ` by name alone, at ${plan.side} px. To train it, choose such a model as the base.`) : null,
    h("p.note", {}, plan.parts), h("p.note", {}, plan.preset), ...plan.notes.map(text => h("p.note.warn", {}, text)),
      plan.disk.lacking ? h("p.note.warn", {}, `The run would write ${lyco.memory(plan.disk.bytes)}, and ${lyco.memory(plan.disk.free)} are free on that disk.`) : null);
  };

  const others = plan => {
    const table = h("div.view");
    lyco.views.layers(table, plan.data, {plan, trigger});
    return table;
  };

  const draw = () => {
    const plan = props.value;
    if (!plan) return fill(root, h("p.note", {}, "Working it out"));
    if (plan.problems) {
      shown = "";
      return fill(root, h("div.pane.problems", {role: "alert"}, h("b", {}, "These settings cannot be used"),
        ...plan.problems.map(text => h("p", {}, text)), plan.fix ? h("p.note", {}, plan.fix) : null,
        plan.dim ? h("div.row", {}, h("button.button", {onclick: () => trigger("dim", {dim: plan.dim})}, `Set dim to ${plan.dim}`), h("span.note", {}, "The nearest that is possible on every layer.")) : null),
        plan.data ? h("div.pane", {}, others(plan)) : null);
    }
    head(plan);
    if (wanted && plan.view !== wanted) return trigger("look", {asked: {view: wanted}});  // worked out before the click
    above(plan);
    if (shown !== plan.view) fill(body);
    lyco.views[plan.view](body, plan.data, {plan, trigger, fresh: shown !== plan.view});
    shown = plan.view;
    if (!root.contains(pane)) fill(root, figures, pane);
  };
  watch("value", draw);
  draw();
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
  const show = ({time, steps, epochs, pictures, batches, smaller, buckets, by_name: byName}) => {
    const about = pictures ? `${lyco.count(steps)} steps, ${epochs} times through ${lyco.some(pictures, "picture")}; an epoch is ${batches} batches in ${lyco.some(buckets, "bucket")}${smaller ? `, ${smaller} not full` : ""}` : `${lyco.count(steps)} steps, no pictures chosen yet`;
    line.title = time.known ? `${about}${time.without.length ? `; without ${time.without.join(" and ")}` : ""}` : "";
    if (time.going) {
      fill(value, "…");
      if (!timer) { line.textContent = "starting"; timer = setTimeout(watch, 200); }
    } else if (time.known) {
      fill(value, lyco.time(time.seconds), h("small", {}, ` ${lyco.time(time.low)} to ${lyco.time(time.high)}`));
      line.textContent = `${lyco.count(steps)} steps, measured ${ago(time.ago)}`;
    } else {
      fill(value, "unknown");
      line.textContent = about;
    }
    act.hidden = byName || (time.known && !time.going);
    act.textContent = time.going ? "Stop measuring" : "Measure a few steps";
    act.title = time.going ? "" : "Trains a few steps of these settings on this machine and keeps nothing but how long they took";
    act.onclick = () => trigger(time.going ? "halt" : "measure");
  };
  return {box, show};
};
