"use strict";
// Draws the map of directories from the JSON of the page. Names are set as text, never as markup.
(() => {
  const map = document.getElementById("map");
  const crumbs = document.getElementById("crumbs");
  const here = document.getElementById("here");
  const tip = document.getElementById("tip");
  const header = 19;      // pixels above what is in a directory
  const least = 3;        // pixels; smaller cells are left out
  const deepest = 4;      // levels that are shown at once
  const way = [JSON.parse(document.getElementById("tree").textContent)];
  let drawn = [];         // {button, node, way, leads, x, y, w, h} of every cell

  const pathOf = (nodes) => "/" + nodes.slice(1).map((n) => n.n).join("/");
  const element = (tag, className, text) => {
    const e = document.createElement(tag);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    return e;
  };

  // What is in a directory, the largest first.
  const parts = (node) => (node.c || []).slice().sort((x, y) => y.a - x.a);
  // Where a cell is; that of files is where their directory is.
  const placeOf = (nodes) => pathOf(nodes[nodes.length - 1].r ? nodes.slice(0, -1) : nodes);

  // Squarified treemap (Bruls, Huizing, van Wijk): fills the rectangle with rows along its shorter side, each as long
  // as that makes its cells more square.
  function squarify(nodes, x, y, w, h, place) {
    let left = nodes.reduce((sum, n) => sum + n.a, 0);
    for (let i = 0; i < nodes.length && left > 0 && w > 0 && h > 0;) {
      const side = Math.min(w, h), scale = w * h / left;
      let sum = 0, worst = Infinity, end = i;
      while (end < nodes.length) {
        const next = sum + nodes[end].a, thick = next * scale / side;
        const longest = nodes[i].a * scale / thick, shortest = nodes[end].a * scale / thick;
        const ratio = Math.max(longest / thick, thick / shortest);
        if (ratio > worst) break;
        worst = ratio; sum = next; end++;
      }
      const thick = sum * scale / side;
      for (let at = 0; i < end; i++) {
        const length = nodes[i].a * scale / thick;
        if (w >= h) place(nodes[i], x, y + at, thick, length);
        else place(nodes[i], x + at, y, length, thick);
        at += length;
      }
      if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
      left -= sum;
    }
  }

  function draw(focus) {
    const width = map.clientWidth, height = map.clientHeight;
    const top = way[way.length - 1];
    drawn = [];
    const put = (node, nodes, x, y, w, h, depth) => {
      if (w < least || h < least) return;
      const inner = parts(node);
      const opened = inner.length > 0 && depth < deepest && w > 56 && h > header + 26;
      const b = element("button", (node.r ? "rest w" : "w") + node.w);
      b.type = "button";
      b.tabIndex = -1;
      // Shares of the map, so that it fits when the page is printed.
      b.style.left = 100 * x / width + "%";
      b.style.top = 100 * y / height + "%";
      b.style.width = 100 * w / width + "%";
      b.style.height = 100 * h / height + "%";
      b.setAttribute("aria-label", (node.r ? node.n + " in " : "") + placeOf(nodes) + ": " + node.s + ", " + node.p + " of the image; " + node.d);
      // What has nothing in it opens the directory that it is in.
      const leads = inner.length > 0 ? nodes : nodes.slice(0, -1);
      if (leads.length <= way.length) b.setAttribute("aria-disabled", "true");
      if (opened) b.classList.add("outer");
      if (w > 34 && h > 18) {
        b.append(element("span", "", node.n));
        if (opened ? w > 120 : w > 64 && h > 34) b.append(element("span", "size", node.s));
      }
      map.append(b);
      drawn.push({ button: b, node, way: nodes, leads, x, y, w, h });
      if (opened) {
        squarify(inner, x + 3, y + header, w - 6, h - header - 3, (n, x, y, w, h) => put(n, nodes.concat(n), x, y, w, h, depth + 1));
      }
    };
    map.replaceChildren();
    tip.hidden = true;
    const shown = parts(top);
    squarify(shown.length > 0 ? shown : [top], 0, 0, width, height, (n, x, y, w, h) => put(n, n === top ? way.slice() : way.concat(n), x, y, w, h, 1));
    const first = drawn.find((d) => d.node === focus) || drawn[0];
    if (first) {
      first.button.tabIndex = 0;
      if (focus) first.button.focus({ preventScroll: true });
    }

    crumbs.replaceChildren(...way.map((node, i) => {
      const b = element("button", "", i === 0 ? "/" : node.n);
      b.type = "button";
      if (i === way.length - 1) b.setAttribute("aria-current", "location");
      else b.addEventListener("click", () => up(i));
      const item = element("li");
      item.append(b);
      return item;
    }));
    here.textContent = top.s + ", " + top.p + " of the image: " + top.d + ".";
  }

  // Shows a directory, and names it in the page's address, so that "back" works and the address can be handed on.
  function go(nodes, focus) {
    way.splice(0, way.length, ...nodes);
    history.pushState(null, "", "#/" + nodes.slice(1).map((n) => encodeURIComponent(n.n)).join("/"));
    draw(focus);
  }

  // Shows the directory that the address names, as far as there is one. Other addresses are for other parts of the page.
  function follow() {
    if (location.hash && !location.hash.startsWith("#/")) return;
    way.length = 1;
    for (const name of location.hash.slice(2).split("/")) {
      const next = (way[way.length - 1].c || []).find((n) => !n.r && encodeURIComponent(n.n) === name);
      if (!next) break;
      way.push(next);
    }
    draw();
  }

  function open(d) {
    if (d.button.getAttribute("aria-disabled")) return;
    go(d.leads, d.node === d.leads[d.leads.length - 1] ? parts(d.node)[0] : d.node);
  }

  function up(to) {
    if (to >= 0 && to < way.length - 1) go(way.slice(0, to + 1), way[to + 1]);
  }

  const cellOf = (target) => {
    const button = target instanceof Element && target.closest("button");
    return button && drawn.find((d) => d.button === button);
  };

  // The nearest cell that begins in the direction of the key.
  function neighbour(from, key) {
    const middle = (d) => [d.x + d.w / 2, d.y + Math.min(d.h / 2, d.button.classList.contains("outer") ? header / 2 : Infinity)];
    const [x, y] = middle(from);
    let best = null, distance = Infinity;
    for (const d of drawn) {
      if (d === from) continue;
      const [dx, dy] = middle(d).map((v, i) => v - [x, y][i]);
      const [along, across] = { ArrowRight: [dx, dy], ArrowLeft: [-dx, dy], ArrowDown: [dy, dx], ArrowUp: [-dy, dx] }[key];
      if (along < 1) continue;
      const far = along + 2 * Math.abs(across);
      if (far < distance) { best = d; distance = far; }
    }
    return best;
  }

  map.addEventListener("click", (e) => { const d = cellOf(e.target); if (d) open(d); });
  map.addEventListener("keydown", (e) => {
    const d = cellOf(e.target);
    if (e.key === "Escape" || e.key === "Backspace") {
      up(way.length - 2);
    } else if (d && e.key.startsWith("Arrow")) {
      const next = neighbour(d, e.key);
      if (next) {
        d.button.tabIndex = -1;
        next.button.tabIndex = 0;
        next.button.focus({ preventScroll: true });
      }
    } else {
      return;
    }
    e.preventDefault();
  });

  function tell(d, x, y) {
    const [path, size, what] = tip.children;
    path.textContent = placeOf(d.way);
    size.textContent = (d.node.r ? d.node.n + ": " : "") + d.node.s + " · " + d.node.p + " of the image";
    what.textContent = d.node.d;
    tip.hidden = false;
    const room = map.clientWidth - tip.offsetWidth;
    tip.style.left = Math.max(0, Math.min(room, x + 12)) + "px";
    tip.style.top = (y + 18 + tip.offsetHeight > map.clientHeight ? Math.max(0, y - tip.offsetHeight - 10) : y + 18) + "px";
  }
  map.addEventListener("pointermove", (e) => {
    const d = cellOf(e.target), at = map.getBoundingClientRect();
    if (d) tell(d, e.clientX - at.left, e.clientY - at.top);
  });
  map.addEventListener("pointerleave", () => { tip.hidden = true; });
  map.addEventListener("focusin", (e) => {
    const d = cellOf(e.target);
    if (d && d.button.matches(":focus-visible")) tell(d, d.x, d.y + Math.min(d.h, header));
  });
  map.addEventListener("focusout", () => { tip.hidden = true; });

  let widest = map.clientWidth;
  draw();
  follow();
  window.addEventListener("popstate", follow);
  new ResizeObserver(() => {
    if (map.clientWidth !== widest) {
      widest = map.clientWidth;
      const held = cellOf(document.activeElement);
      draw(held && held.node);
    }
  }).observe(map);
})();
