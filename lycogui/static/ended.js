/* What can be done with a run that has ended: go on with it, or delete it. Both ask first, in a dialog. */
lyco.dialog = (title, ...content) => {
  const box = lyco.h("dialog.ask.lyco", {"aria-label": title, onclose: () => box.remove()},
    lyco.h("div.inner", {}, lyco.h("h3", {}, title), ...content));
  lyco.leave(box, () => box.close());
  (document.querySelector(".gradio-container") || document.body).append(box);
  box.showModal();
  return box;
};

/* More steps, and what else may change; below it what that means for the learning rate. `proposed` are values to begin
   with, made of those that stand: {path: old => new}. */
lyco.extend = async (run, done, proposed = {}) => {
  const {h, fill} = lyco;
  const found = await lyco.api("extension", {run: run.id}), inputs = new Map(), told = h("p.note", {"aria-live": "polite"}), wrong = h("p.note.warn", {role: "alert", hidden: true});
  const values = () => Object.fromEntries([...inputs].map(([path, input]) => [path, input.tagName === "TEXTAREA" ? input.value.split("\n").map(line => line.trim()).filter(Boolean) : input.value]));
  const tell = now => {
    const problems = Object.values(now.problems), steps = Number(inputs.get("train.steps").value);
    if (!problems.length && steps < now.step) problems.push(`${lyco.count(now.step)} steps are done; give more.`);
    told.textContent = problems.length ? "" : now.course;
    wrong.hidden = !problems.length;
    wrong.textContent = problems.join(" ");
  };
  let turn = 0;
  const ask = async () => { const mine = ++turn; try { const now = await lyco.api("extension", {run: run.id, values: values()}); if (mine === turn) tell(now); } catch (error) { lyco.toast(error.message, "bad"); } };
  const start = one => one.path in proposed ? proposed[one.path](one.value)
    : one.path === "train.steps" && run.state === "done" ? one.value + Math.max(1, Math.round(one.value / 2)) : one.value;
  const field = one => {
    const text = Array.isArray(one.value), input = text ? h("textarea", {rows: 3, value: one.value.join("\n"), oninput: ask})
      : h("input", {type: "number", step: "any", min: 0, value: start(one), oninput: ask});
    inputs.set(one.path, input);
    return h(text ? "label.wide" : "label", {title: one.help}, h("span", {}, one.path === "train.steps" ? "Steps in all" : one.label), input);
  };
  const go = async () => {
    try { await lyco.api("proceed", {run: run.id, values: values()}); } catch (error) { wrong.hidden = false; wrong.textContent = error.message; return; }
    box.close();
    lyco.toast(`${run.name} is in the queue.`);
    done();
  };
  const box = lyco.dialog(`Continue ${run.name}`, h("p.note", {}, `${lyco.count(found.step)} of ${lyco.count(found.total)} steps are done and saved.`),
    h("div.fields", {}, ...found.fields.map(field)), told, wrong, h("p.note", {}, found.fixed),
    h("div.row", {}, h("span.grow"), h("button.button", {onclick: () => box.close()}, "Cancel"), h("button.button.on", {onclick: go}, "Continue")));
  inputs.get(Object.keys(proposed)[0] || "train.steps").focus();
  ask();
};

lyco.deleteRun = async (run, done) => {
  const {h} = lyco, found = await lyco.api("doomed", {run: run.id});
  const parts = [found.adapter && "its adapter", found.checkpoints && lyco.some(found.checkpoints, "checkpoint"), found.pictures && lyco.some(found.pictures, "picture"), "its settings and curve"].filter(Boolean);
  const go = async () => {
    try { await lyco.api("delete_run", {run: run.id}); } catch (error) { box.close(); lyco.toast(error.message, "bad"); return done(); }
    box.close();
    lyco.toast(`${found.name} is deleted.`);
    done();
  };
  const box = lyco.dialog(`Delete ${found.name}?`, h("p", {}, `${lyco.memory(found.bytes)}: ${parts.slice(0, -1).join(", ")}${parts.length > 1 ? " and " : ""}${parts.at(-1)}, for good.`),
    h("p.note.path", {title: found.folder}, found.folder),
    found.missed_by.length ? h("p.note.warn", {}, `${found.missed_by.join(", ")} started from it and could not be resumed without it.`) : null,
    h("div.row", {}, h("span.grow"), h("button.button", {onclick: () => box.close(), autofocus: true}, "Keep it"), h("button.button.danger", {onclick: go}, "Delete")));
};
