"use strict";
(function () {
  var root = JSON.parse(document.getElementById("data").textContent);
  var map = document.getElementById("map"), trail = document.getElementById("trail"), said = document.getElementById("said");
  var way = [root];

  function size(n) {
    if (n < 1000) return n + " B";
    var unit = -1;
    while (n >= 999.95) { n /= 1000; unit++; }
    return n.toFixed(1) + " " + "kMGTPE"[unit] + "B";
  }
  function weight(d) { return d.b + (d.s || 0); }
  function wasted(d) { return weight(d) ? ((d.d || 0) + (d.s || 0)) / weight(d) : 0; }
  function shade(d) {
    var w = wasted(d);
    return w < 0.05 ? "w0" : w < 0.25 ? "w1" : w < 0.5 ? "w2" : w < 0.75 ? "w3" : "w4";
  }
  // What is in a directory: its directories, and all else as one.
  function inside(d) {
    var rest = { n: "", b: d.b, f: d.f, d: d.d || 0, s: d.s || 0, files: true };
    var all = (d.c || []).map(function (c) {
      rest.b -= c.b; rest.f -= c.f; rest.d -= c.d || 0; rest.s -= c.s || 0;
      return c;
    });
    if (weight(rest) > 0) all.push(rest);
    return all.filter(weight).sort(function (a, b) { return weight(b) - weight(a); });
  }
  // Squarified treemap: rows along the shorter side, as long as that makes cells squarer.
  function place(nodes, x, y, w, h, put) {
    var total = nodes.reduce(function (sum, d) { return sum + weight(d); }, 0), i = 0;
    while (i < nodes.length && total > 0 && w > 0 && h > 0) {
      var side = Math.min(w, h), scale = w * h / total, sum = 0, best = Infinity, end = i;
      for (var k = i; k < nodes.length; k++) {
        var next = sum + weight(nodes[k]), depth = next * scale / side;
        var worst = 0;
        for (var m = i; m <= k; m++) {
          var length = weight(nodes[m]) * scale / depth;
          worst = Math.max(worst, length / depth, depth / length);
        }
        if (worst > best) break;
        best = worst; sum = next; end = k + 1;
      }
      var thick = sum * scale / side, at = 0;
      for (var j = i; j < end; j++) {
        var part = weight(nodes[j]) / sum * side;
        if (w >= h) put(nodes[j], x, y + at, thick, part); else put(nodes[j], x + at, y, part, thick);
        at += part;
      }
      if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
      total -= sum; i = end;
    }
  }
  function text(parent, tag, kind, words) {
    var e = document.createElement(tag);
    if (kind) e.className = kind;
    e.textContent = words;
    parent.appendChild(e);
    return e;
  }
  function label(d) { return d.files ? "files and small directories" : d.n + "/"; }
  function tell(d) {
    return label(d) + ": " + size(d.b) + " in " + d.f + " files, " + size(d.s || 0) + " shadowed, " + size(d.d || 0) + " copies";
  }
  function cell(parent, d, x, y, w, h, depth) {
    if (w < 2 || h < 2) return;
    var opens = depth === 0 && !d.files && d.c;
    var e = document.createElement(opens ? "button" : "div");
    e.className = "cell " + shade(d) + (depth ? " plain" : "");
    e.style.left = x + "px"; e.style.top = y + "px"; e.style.width = w + "px"; e.style.height = h + "px";
    e.title = tell(d);
    if (opens) {
      e.setAttribute("aria-label", tell(d));
      e.addEventListener("click", function () { go(way.concat([d]), true); });
    }
    if (w > 46 && h > 18) text(e, "span", "name", label(d));
    var head = w > 46 && h > 34 ? 36 : 20;
    if (head === 36) text(e, "span", "amount", size(d.b) + (d.s ? " + " + size(d.s) + " shadowed" : ""));
    if (depth === 0 && !d.files && w > 120 && h > 90) {
      place(inside(d), 4, head + 4, w - 10, h - head - 10, function (c, cx, cy, cw, ch) { cell(e, c, cx, cy, cw, ch, 1); });
    }
    parent.appendChild(e);
  }
  function draw() {
    var here = way[way.length - 1];
    map.textContent = "";
    place(inside(here), 0, 0, map.clientWidth, map.clientHeight, function (d, x, y, w, h) { cell(map, d, x, y, w, h, 0); });
    trail.textContent = "";
    way.forEach(function (d, i) {
      var b = text(trail, "button", "", i === 0 ? "/" : d.n + (i < way.length - 1 ? " ›" : ""));
      b.type = "button";
      if (i === way.length - 1) b.setAttribute("aria-current", "location");
      else b.addEventListener("click", function () { go(way.slice(0, i + 1), true); });
    });
    said.textContent = "/" + way.slice(1).map(function (d) { return d.n; }).join("/") + ": " + size(here.b) + " in " + here.f + " files, " + size(here.s || 0) + " shadowed, " + size(here.d || 0) + " copies";
  }
  function go(to, focus) {
    way = to;
    history.replaceState(null, "", "#/" + way.slice(1).map(function (d) { return encodeURIComponent(d.n); }).join("/"));
    draw();
    if (focus) (map.querySelector("button") || trail.querySelector("button")).focus();
  }
  // The address may name a directory.
  function follow() {
    way = [root];
    location.hash.replace(/^#\/?/, "").split("/").forEach(function (name) {
      var found = (way[way.length - 1].c || []).filter(function (c) { return encodeURIComponent(c.n) === name; })[0];
      if (found) way.push(found);
    });
    draw();
  }
  document.addEventListener("keydown", function (e) {
    if (e.key === "Escape" && way.length > 1) go(way.slice(0, -1), true);
  });
  window.addEventListener("hashchange", follow);
  window.addEventListener("resize", draw);
  follow();
})();
