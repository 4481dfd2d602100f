// Shows what was measured at one alpha at a time. Texts from outside are set as text, never as HTML.
(() => {
  const held = document.getElementById("alpha-data");
  if (!held) return;
  const { chosen, domains, points, thumbnails } = JSON.parse(held.textContent);
  const range = document.getElementById("alpha-at");
  const now = document.getElementById("alpha-now");
  const rows = document.getElementById("alpha-rows");
  const changes = document.getElementById("changes-at");
  const asWritten = changes && [...changes.childNodes];
  for (const image of document.querySelectorAll("img[data-picture]")) thumbnails[image.dataset.picture] ??= image.src;

  const make = (tag, look, ...inside) => {
    const element = document.createElement(tag);
    if (look) element.className = look;
    element.append(...inside);
    return element;
  };
  const percent = (value) => (100 * value).toFixed(1);
  const signed = (value) => (value < 0 ? "−" : "+") + (100 * Math.abs(value)).toFixed(1);
  const look = (value) => (Math.abs(value) < 0.0005 ? "soft" : value > 0 ? "good" : "bad");

  const row = (name, kind, value, base, best) => {
    const fill = make("i");
    fill.style.width = `${percent(value)}%`;
    const mark = make("b");
    mark.style.left = `${percent(base)}%`;
    return make(
      "tr", "",
      make("td", "", name, make("small", "", kind)),
      make("td", "", make("div", "bar", fill, mark)),
      make("td", "", `${percent(value)} %`),
      make("td", look(value - base), signed(value - base)),
      make("td", "", String(best)),
    );
  };
  const along = (of) => {
    const values = points.map(of);
    return [values, points[values.indexOf(Math.max(...values))].alpha];
  };

  const card = (domain, picture, gained) => {
    const address = thumbnails[`${domain}/${picture.index}`];
    const shown = make(address ? "img" : "span", address ? "" : "missing");
    if (address) [shown.src, shown.alt] = [address, picture.identity];
    else shown.append(picture.identity);
    const line = (when, answer, confidence, right) => [
      make("span", "soft", when), " ", make("span", right ? "good" : "bad", answer), " ",
      make("span", "soft", `${Math.round(100 * confidence)} %`), make("br"),
    ];
    const element = make(
      "div", "picture", shown,
      make(
        "div", "", make("strong", "", picture.truth),
        ...line("before:", picture.before, picture.confidence_before, !gained),
        ...line("now:", picture.after, picture.confidence_after, gained),
      ),
    );
    element.title = picture.identity;
    return element;
  };
  const changed = (change) => {
    const { wrong_to_right: up, right_to_wrong: down } = change;
    const parts = [make("h3", "", change.domain)];
    if (up + down) {
      const [good, bad] = [make("i", "up"), make("i", "down")];
      good.style.width = `${(100 * up) / (up + down)}%`;
      bad.style.width = `${(100 * down) / (up + down)}%`;
      parts.push(make("div", "flow", good, bad));
    }
    parts.push(make(
      "p", "", `Of ${change.n} pictures `, make("span", "good", `${up} turned right`), " and ",
      make("span", "bad", `${down} turned wrong`), `: ${signed((up - down) / change.n)} points.`,
    ));
    for (const [title, pictures, total, gained] of [
      ["Right before, wrong now", change.lost, down, false],
      ["Wrong before, right now", change.gained, up, true],
    ]) {
      if (!pictures.length) continue;
      parts.push(make("p", "", make("strong", "", title), make("span", "soft", ` (${pictures.length} of ${total})`)));
      parts.push(make("div", "pictures", ...pictures.map((picture) => card(change.domain, picture, gained))));
    }
    return parts;
  };

  const show = (at) => {
    const point = points[at];
    range.value = at;
    now.textContent = at === chosen ? `${point.alpha} (chosen)` : String(point.alpha);
    range.setAttribute("aria-valuetext", now.textContent);
    rows.replaceChildren();
    for (const { name, kind } of domains) {
      const [values, best] = along((one) => one.measures[name]);
      rows.append(row(name, kind, values[at], values[0], best));
    }
    const [means, best] = along((one) => one.shifted_mean);
    const mean = row("mean of shifted", "", means[at], means[0], best);
    mean.className = "main";
    rows.append(mean);
    if (!changes || !point.changes.length) return;
    if (at === chosen) changes.replaceChildren(...asWritten);
    else changes.replaceChildren(
      make("p", "warning", `At alpha ${point.alpha}, which was not chosen: the slider above moves it.`),
      ...point.changes.flatMap(changed),
    );
  };
  const asked = points.findIndex((point) => `#alpha=${point.alpha}` === location.hash);
  show(asked < 0 ? chosen : asked);
  range.addEventListener("input", () => show(Number(range.value)));
  document.documentElement.classList.add("scripted");
})();
