/* The header: base model, device with its memory, what runs now. Each is a button. */
lyco.parts.header = ({element, trigger}) => {
  const {h, fill} = lyco;
  const bar = element.querySelector("#header");
  if (!document.body.dataset.ready) lyco.loading();
  const base = h("button.chip", {title: "Choose the base model", onclick: () => trigger("base")});
  const device = h("button.chip", {onclick: () => details.toggleAttribute("hidden")});
  const BESIDE = {comparisons: "Painting a comparison", tools: "A tool is at work"};
  let goal = "Train", going = "";
  const job = h("button.chip.job", {title: "Go to what runs", onclick: () => goal ? lyco.tab(goal) : trigger("base")});
  const details = h("div.popover", {hidden: true});
  bar.append(base, device, details, h("span.grow"), h("span.offline", {title: lyco.AGAIN, role: "status"}, "lycogui does not answer", h("small", {}, "training goes on; start it again to see it")), job);
  const meter = share => h("span.meter", {}, h("i", {style: {width: `${Math.round(100 * share)}%`}}));

  lyco.poll(bar, 1, async () => {
    const now = await lyco.api("status");
    base.classList.toggle("bad", !!now.base.problem);
    base.title = now.base.problem || "Choose the base model";
    fill(base, now.base.name, h("small", {}, now.base.problem ? "cannot be used" : now.base.label));
    const d = now.device, used = d.total - d.free;
    device.classList.toggle("bad", !!d.problem);
    device.title = d.problem || `${lyco.gib(d.free)} free of ${lyco.gib(d.total)}`;
    fill(device, d.problem ? "GPU not used" : d.name, h("small.num", {}, `${lyco.gib(used)} of ${lyco.gib(d.total)}`), meter(used / d.total));
    fill(details, h("b", {}, d.name), h("p", {}, `${lyco.gib(d.free)} of ${lyco.gib(d.total)} memory free.`), d.problem && h("p.bad", {}, d.problem));
    lyco.watchFetch(now.fetching, () => trigger("fetched"));
    if (going && going !== now.job?.id) trigger("ended");  // what it has measured is known now
    going = now.job?.id || "";
    const run = now.job, queue = now.waiting ? `, ${now.waiting} waiting` : "";
    const kind = now.beside.find(name => name in BESIDE), other = kind ? BESIDE[kind] : now.fetching ? "Downloading" : now.beside.length ? "Measuring" : "";
    goal = kind === "tools" && !run ? "Tools" : kind && !run ? "Compare" : now.fetching && !run ? "" : "Train";
    if (!run) return fill(job, other && h("span.dot"), h("small", {}, (other || "Nothing running") + queue));
    const left = run.left === null ? "" : `, ${lyco.time(run.left)} left`;
    const doing = run.paused ? `paused at step ${run.step}` : run.step ? `${run.step} / ${run.total}${left}` : run.stage ? run.stage.name : run.state;
    fill(job, h("span.dot"), run.name, meter(run.total ? run.step / run.total : 0), h("small.num", {}, doing + queue));
  });
  document.addEventListener("click", event => {
    if (!details.hidden && !details.contains(event.target) && !device.contains(event.target)) details.hidden = true;
  });
};
