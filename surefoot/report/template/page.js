"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const MARKERS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star"];
  const OPEN = 3; // how far the second round of markers is turned, so that a colour comes back with another shape
  const START = { eye: { x: -1.25, y: -1.25, z: 0.8 }, center: { x: 0, y: 0, z: -0.12 }, up: { x: 0, y: 0, z: 1 } }; // how a surface is seen first
  const ACROSS = document.querySelector(".beside") ? 3 : 2; // plots: pages of wide tables are printed across
  const PRINTED = ACROSS > 2 ? 960 : 660; // pixels between the margins of A4, and of Letter
  const WEBGL = (() => {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  })();
  const chosen = {};
  let printing = false;

  const endOf = (text, count) => (text.length > count ? "…" + text.slice(1 - count) : text); // names differ at their end
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "%\u200b{"); // Plotly reads some HTML
  const at = (id) => document.getElementById(id);
  const isClosed = (element) => element.closest("details:not([open])") !== null;
  const choiceOf = (id) => figures[id].choices[chosen[id] || 0];

  // Shape alone tells 14 apart, for those who see no colours: the first seven are filled, the next open.
  function marker(look, style, size) {
    const round = Math.floor(style / MARKERS.length);
    const colour = look.lines[style % look.lines.length];
    return round % 2
      ? { color: colour, symbol: MARKERS[(style + OPEN * round) % MARKERS.length] + "-open", size, line: { color: colour, width: 1.6 } }
      : { color: colour, symbol: MARKERS[(style + OPEN * round) % MARKERS.length], size };
  }

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { ink: read("--ink"), soft: read("--soft"), line: read("--line"), paper: read("--paper"), lines: read("--lines").split(" ") };
  }

  function axis(look, title, more) {
    return {
      title: { text: title, standoff: 8, font: { color: look.soft, size: printing ? 11 : 13 } }, color: look.soft, gridcolor: look.line,
      linecolor: look.soft, zeroline: false, ticks: "outside", tickcolor: look.line, automargin: true, fixedrange: matchMedia("(pointer: coarse)").matches, ...more,
    };
  }

  function baseLayout(look, width, height) {
    return {
      width, height, autosize: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: look.ink },
      hoverlabel: { bgcolor: look.paper, bordercolor: look.line, font: { color: look.ink } },
    };
  }

  function drawBars(id, look, width) {
    const figure = figures[id];
    const lines = choiceOf(id).lines;
    return [[{
      type: "bar", x: lines.map((line) => plain(line.name)), y: lines.map((line) => line.y[0]), width: 0.55,
      marker: { color: lines.map((line) => look.lines[line.style % look.lines.length]) },
      texttemplate: "%{y:.3~g}", textposition: "outside", cliponaxis: false, hoverinfo: "skip",
    }], {
      ...baseLayout(look, width, printing ? 240 : 330), margin: { l: 52, r: 10, t: 24, b: 8 },
      xaxis: axis(look, "", { type: "category", showgrid: false, fixedrange: true }),
      yaxis: axis(look, `${figure.y} at ${figure.x} = ${lines[0].x[0]}`, { rangemode: "tozero" }),
    }];
  }

  function drawLines(id, look, width) {
    const figure = figures[id];
    const lines = choiceOf(id).lines;
    if (lines.every((line) => line.x.length === 1 && line.x[0] === lines[0].x[0])) return drawBars(id, look, width);
    const bands = [];
    const traces = [];
    for (const line of lines) {
      const colour = look.lines[line.style % look.lines.length];
      if (line.low && line.high) {
        bands.push({
          x: [...line.x, ...line.x.toReversed()], y: [...line.high, ...line.low.toReversed()], mode: "lines", fill: "toself",
          fillcolor: colour + (lines.length > 3 ? "18" : "26"), line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: line.name,
        });
      }
      traces.push({
        x: line.x, y: line.y, name: plain(line.name), legendgroup: line.name, mode: line.x.length > 60 ? "lines" : "lines+markers",
        line: { color: colour, dash: DASHES[line.style % DASHES.length], width: 2 },
        marker: marker(look, line.style, 7),
        hovertemplate: figure.percent ? "%{y:.1f} %" : "%{y:.4~g}",
      });
    }
    return [[...bands, ...traces], {
      ...baseLayout(look, width, (printing ? 270 : 330) + 22 * Math.ceil(lines.length / Math.max(1, Math.floor(width / 170)))),
      margin: { l: 52, r: 10, t: 8, b: 8 }, hovermode: "x unified", showlegend: true,
      xaxis: axis(look, figure.x, figure.log ? { type: "log", tickmode: "array", tickvals: [...new Set(lines.flatMap((line) => line.x))] } : {}),
      yaxis: axis(look, figure.y, figure.percent ? { range: [-3, 103], dtick: 20 } : figure.ends ? { range: figure.ends } : { rangemode: "tozero" }),
      legend: { orientation: "h", x: 0, xanchor: "left", y: -0.24, yanchor: "top", font: { size: 13 } },
    }];
  }

  const nearest = (values, wanted) => values.reduce((best, value, i) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? i : best), 0);

  function drawSurface(id, look, width) {
    const { e1, e2, loss, eps, ends } = choiceOf(id);
    const side = (title, more) => ({ title: { text: title, font: { size: width < 500 ? 13 : 17 } }, color: look.soft, gridcolor: look.line, tickfont: { size: 11 }, zeroline: false, showspikes: false, ...more });
    const [i, j] = [nearest(e2, 0), nearest(e1, 0)];
    const flat = loss.flat().filter((value) => value !== null);
    const [low, high] = ends ?? [Math.min(...flat), Math.max(...flat)];
    const small = width < 500 ? 0.72 : 1; // room for what stands beside it
    return [[
      {
        type: "surface", x: e1, y: e2, z: loss, colorscale: "Viridis", showscale: false, ...(ends && { cmin: low, cmax: high }),
        contours: { x: { highlight: false }, y: { highlight: false }, z: { highlight: false } },
        hovertemplate: "e<sub>1</sub> %{x:.3f}, e<sub>2</sub> %{y:.3f}<br>loss %{z:.3f}<extra></extra>",
      },
      { type: "scatter3d", x: [e1[j]], y: [e2[i]], z: [loss[i][j] + 0.02 * (high - low)], mode: "markers", marker: { size: 4.5, symbol: "diamond", color: "#d55e00", line: { color: "#fff", width: 1 } }, hovertemplate: "the image<extra></extra>" },
    ], {
      ...baseLayout(look, width, width < 500 ? 330 : 440), margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false,
      scene: { xaxis: side("e<sub>1</sub>", inEps(eps)), yaxis: side("e<sub>2</sub>", inEps(eps)), zaxis: side("loss", { nticks: 6, ...(ends && { range: [low, high + 0.04 * (high - low)] }) }), aspectmode: "manual", aspectratio: { x: small, y: small, z: 0.75 * small }, camera: structuredClone(at(id).layout?.scene.camera ?? START) },
    }];
  }

  function inEps(eps) {
    return { tickmode: "array", tickvals: [-eps, 0, eps], ticktext: ["−ε", "0", "ε"] };
  }

  function drawMaps(id, look, width) {
    const parts = choiceOf(id).map(([figure, choice, name]) => ({ name, ...figures[figure].choices[choice] }));
    const columns = Math.min(parts.length, Math.max(1, Math.floor(width / 150)));
    const rows = Math.ceil(parts.length / columns);
    const below = rows > 1; // where the colour bar stands
    const named = parts.length > 1 ? 26 : 4;
    const margin = { l: 36, r: below ? 8 : 70, t: named, b: below ? 110 : 40 };
    const gap = 22;
    const side = Math.min(360, (width - margin.l - margin.r - gap * (columns - 1)) / columns);
    const [inner, high] = [width - margin.l - margin.r, rows * side + (rows - 1) * named];
    const losses = parts.flatMap((part) => part.loss.flat()).filter((value) => value !== null);
    const bar = below ? { orientation: "h", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom" } : { x: (columns * (side + gap)) / inner, xanchor: "left" };
    const layout = {
      ...baseLayout(look, width, high + margin.t + margin.b), margin, shapes: [], annotations: [],
      coloraxis: {
        colorscale: "Viridis", cmin: Math.min(...losses), cmax: Math.max(...losses),
        colorbar: { title: { text: "loss", side: below ? "top" : "right", font: { color: look.soft, size: 13 } }, thickness: 10, outlinewidth: 0, tickcolor: look.line, tickfont: { color: look.soft }, xpad: 4, ...bar },
      },
    };
    const traces = [];
    parts.forEach((part, i) => {
      const [column, row] = [i % columns, Math.floor(i / columns)];
      const [x, y] = i ? ["x" + (i + 1), "y" + (i + 1)] : ["x", "y"];
      const [left, top] = [(column * (side + gap)) / inner, 1 - (row * (side + named)) / high];
      const lowest = i + columns >= parts.length;
      const both = { showgrid: false, automargin: false, ...inEps(part.eps) };
      layout[x.replace("x", "xaxis")] = axis(look, lowest ? "e<sub>1</sub>" : "", { ...both, domain: [left, left + side / inner], anchor: y, showticklabels: lowest, range: [part.e1[0], part.e1.at(-1)] });
      layout[y.replace("y", "yaxis")] = axis(look, column ? "" : "e<sub>2</sub>", { ...both, domain: [Math.max(0, top - side / high), top], anchor: x, showticklabels: !column, range: [part.e2[0], part.e2.at(-1)] });
      layout.shapes.push({ type: "rect", xref: x, yref: y, x0: -part.eps, x1: part.eps, y0: -part.eps, y1: part.eps, line: { color: "#fff", width: 1.5, dash: "dash" } });
      if (part.name) layout.annotations.push({ text: plain(endOf(part.name, Math.floor(side / 8))), xref: x + " domain", yref: y + " domain", x: 0, y: 1, xanchor: "left", yanchor: "bottom", showarrow: false, font: { color: look.ink, size: 13 } });
      const axes = { xaxis: x, yaxis: y };
      traces.push({
        type: "contour", x: part.e1, y: part.e2, z: part.loss, coloraxis: "coloraxis", ncontours: 14, line: { width: 0.4, color: "rgba(255,255,255,.55)" }, contours: { coloring: "heatmap" }, ...axes,
        hovertemplate: "e<sub>1</sub> %{x:.3f}, e<sub>2</sub> %{y:.3f}<br>loss %{z:.3f}<extra></extra>",
      });
      traces.push({ x: [0], y: [0], mode: "markers", marker: { symbol: "x-thin", size: 10, line: { width: 2.5, color: "#fff" } }, hoverinfo: "skip", showlegend: false, ...axes });
    });
    return [traces, layout];
  }

  function drawAgainst(id, look, width) {
    const { series, ends } = figures[id];
    const [low, high] = ends;
    const side = Math.min(width, printing ? 280 : 480);
    const traces = series.map(({ name, points }, i) => ({
      name: plain(name), x: points.map((point) => point.paper), y: points.map((point) => point.ours), mode: "markers",
      error_y: { type: "data", symmetric: false, array: points.map((point) => point.high - point.ours), arrayminus: points.map((point) => point.ours - point.low), width: 0, thickness: 1.2, color: look.lines[i % look.lines.length] },
      marker: marker(look, i, 8),
      customdata: points.map((point) => plain(point.column)), hovertemplate: "%{customdata}: ours %{y:.2f}, the paper's %{x:.2f}",
    }));
    return [traces, {
      ...baseLayout(look, width, side + 22 * Math.ceil(series.length / Math.max(1, Math.floor(width / 150)))), margin: { l: 52, r: 10, t: 8, b: 8 }, hovermode: "closest", showlegend: true,
      xaxis: axis(look, "the paper's (%)", { range: ends }), yaxis: axis(look, "ours (%)", { range: ends }),
      shapes: [{ type: "line", x0: low, y0: low, x1: high, y1: high, layer: "below", line: { color: look.soft, width: 1, dash: "dot" } }],
      legend: { orientation: "h", x: 0, xanchor: "left", y: -0.18, yanchor: "top", font: { size: 13 } },
    }];
  }

  const KINDS = { lines: drawLines, surface: drawSurface, maps: drawMaps, against: drawAgainst };

  function draw(id) {
    const element = at(id);
    const { kind } = figures[id];
    if (kind === "surface" && (!WEBGL || printing)) return;
    const width = printing ? { lines: ACROSS > 2 ? 308 : 325, against: 480, maps: element.classList.contains("map") ? 420 : PRINTED }[kind] : element.clientWidth;
    const [traces, layout] = KINDS[kind](id, theme(), width);
    element.style.minHeight = "0";
    (kind === "surface" ? Plotly.react : Plotly.newPlot)(element, traces, layout, { displayModeBar: false, scrollZoom: false, doubleClick: "reset" });
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && !target.data && !isClosed(target)) draw(target.id);
    }
  }, { rootMargin: "50% 0px" });

  function redraw() {
    for (const id of Object.keys(figures)) {
      const element = at(id);
      if (isClosed(element)) Plotly.purge(element); // and drawn again when it is seen
      else if (element.data || printing) draw(id);
    }
    markScrollers();
  }

  function markScrollers() {
    for (const box of document.querySelectorAll(".scroll")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
      markBeyond(box);
    }
  }

  function markBeyond(box) { // what is hidden behind the first column
    box.classList?.toggle("beyond", box.scrollLeft > 0);
  }

  function choose(ids, place) {
    for (const id of ids) {
      chosen[id] = place;
      if (at(id).data) draw(id);
      const words = at(id + "-words");
      if (words) words.textContent = choiceOf(id).words;
    }
  }

  function turn(id, key) {
    const scene = at(id).layout.scene;
    const eye = { ...scene.camera.eye };
    const around = { ArrowLeft: -1, ArrowRight: 1 }[key] || 0;
    const up = { ArrowDown: -1, ArrowUp: 1 }[key] || 0;
    const away = { "+": 1 / 1.1, "=": 1 / 1.1, "-": 1.1 }[key] || 1;
    if (key === "Home") return Plotly.relayout(id, { "scene.camera": structuredClone(START) });
    if (!around && !up && away === 1) return null;
    const far = Math.hypot(eye.x, eye.y, eye.z) * away;
    const longitude = Math.atan2(eye.y, eye.x) + (around * Math.PI) / 24;
    const latitude = Math.max(-1.5, Math.min(1.5, Math.atan2(eye.z, Math.hypot(eye.x, eye.y)) + (up * Math.PI) / 24));
    return Plotly.relayout(id, {
      "scene.camera.eye": { x: far * Math.cos(latitude) * Math.cos(longitude), y: far * Math.cos(latitude) * Math.sin(longitude), z: far * Math.sin(latitude) },
    });
  }

  function openNamed() {
    const model = location.hash && at(location.hash.slice(1));
    if (model && model.tagName === "DETAILS") {
      model.open = true;
      model.scrollIntoView();
    }
  }

  document.addEventListener("change", (event) => {
    const { figures: ids } = event.target.dataset;
    if (ids) choose(ids.split(" "), Number(event.target.value));
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.classList.contains("surface") && !event.ctrlKey && !event.metaKey && turn(event.target.id, event.key)) event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const { turnBack } = event.target.dataset;
    if (turnBack && at(turnBack).data) turn(turnBack, "Home");
    if (event.target.hash && event.target.hash === location.hash) openNamed();
  });
  document.addEventListener("toggle", markScrollers, true);
  document.addEventListener("scroll", (event) => markBeyond(event.target), true);
  window.addEventListener("hashchange", openNamed);

  let pause;
  let width = innerWidth;
  window.addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar
    width = innerWidth;
    clearTimeout(pause);
    pause = setTimeout(redraw, 150);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  let closed = [];
  window.addEventListener("beforeprint", () => {
    printing = true;
    document.documentElement.classList.add("printing");
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
    redraw();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    document.documentElement.classList.remove("printing");
    for (const each of closed) each.open = false;
    redraw();
  });

  if (!WEBGL) {
    for (const solid of document.querySelectorAll(".solid, .turn-back")) solid.hidden = true;
    for (const told of document.querySelectorAll(".no-webgl")) told.hidden = false;
  }
  for (const id of Object.keys(figures)) watcher.observe(at(id));
  markScrollers();
  openNamed();
})();
