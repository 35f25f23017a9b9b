/* What the base model lacks, from Hugging Face: how much it is, then a download with its progress. */
lyco.parts.fetch = ({element}) => {
  const {h, fill} = lyco, root = element.querySelector(".fetch-root");
  let offered = null, asking = false, refused = "", drawn = "";

  const button = (text, onclick, kind = "") => h(`button.button${kind}`, {onclick}, text);
  const ask = async () => {
    asking = true; refused = ""; draw();
    try { offered = await lyco.api("offer"); } catch (error) { refused = error.message; }
    asking = false; draw();
  };
  const start = async () => {
    offered = null;
    try { data = await lyco.api("start_download"); lyco.fetching = true; } catch (error) { refused = error.message; }
    draw();
  };
  const stop = async () => { try { await lyco.api("stop_download"); } catch (error) { lyco.toast(error.message, "bad"); } look(); };

  const going = () => {
    const stage = data.stage, share = stage?.total ? stage.done / stage.total : 0;
    const said = data.stopping ? "stopping" : stage?.total ? `${lyco.count(stage.done)} of ${lyco.count(stage.total)} MiB${data.left ? `, ${lyco.time(data.left)} left` : ""}` : "asking what is needed";
    return [h("p.note", {}, h("b", {}, `Downloading ${data.name}`), ` ${said}.`),
      h("div.progress", {role: "progressbar", "aria-label": `Downloading ${data.name}`, "aria-valuenow": Math.round(100 * share)}, h("i", {style: {width: `${100 * share}%`}})),
      h("div.row", {}, button(data.stopping ? "Stopping" : "Cancel the download", stop))];
  };
  const lacks = () => [
    data.state === "failed" && data.name === data.lacking && data.error ? h("p.note.warn", {role: "alert"}, `${data.error.message} ${data.error.fix}`) : null,
    refused ? h("p.note.warn", {role: "alert"}, refused) : null,
    offered?.name === data.lacking ? h("p.note", {}, h("b", {}, lyco.memory(offered.bytes)), ` in ${lyco.some(offered.files, "file")} from huggingface.co into ${offered.cache}, where ${lyco.memory(offered.free)} are free. It goes on when this page is closed.`) : null,
    h("div.row", {}, offered?.name === data.lacking
      ? [button("Download", start, ".primary"), button("Not now", () => { offered = null; draw(); })]
      : button(asking ? "Asking Hugging Face" : `Download ${data.lacking}`, ask, ".primary"))];

  let data = {state: "none", lacking: ""};
  const draw = () => {
    const busy = ["running", "starting"].includes(data.state);
    const now = JSON.stringify([data, offered, asking, refused]);
    if (now === drawn) return;
    drawn = now;
    root.hidden = !busy && !data.lacking;
    fill(root, ...(busy ? going() : data.lacking ? lacks() : []));
  };
  const look = lyco.poll(root.parentElement, .8, async () => { data = await lyco.api("download"); draw(); });
};

/* Called with every look at the header: says when a download has ended, wherever the user is by then. */
lyco.fetching = false;
lyco.watchFetch = async (now, done) => {
  if (now || !lyco.fetching) { lyco.fetching ||= now; return; }
  lyco.fetching = false;
  const last = await lyco.api("download");
  if (["running", "starting"].includes(last.state)) lyco.fetching = true;  // begun after the header looked
  else if (last.state === "done") { lyco.toast(`${last.name} is here.`); done(); }
  else if (last.error) lyco.toast(`The download failed. ${last.error.message}`, "bad");
};
