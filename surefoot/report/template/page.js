"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "8px 3px 1px 3px"];
  const MARKERS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star"];
  const EYE = { x: -1.45, y: -1.45, z: 0.85 }; // of the surface's camera, where it begins
  const PRINTED = 660; // pixels between the margins of A4, and of Letter
  const WEBGL = (() => {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  })();
  const chosen = {};
  let printing = false;

  const at = (id) => document.getElementById(id);
  const isShown = (element) => element.getClientRects().length > 0;
  const choiceOf = (id) => figures[id].choices[chosen[id] || 0];

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { ink: read("--ink"), soft: read("--soft"), line: read("--line"), paper: read("--paper"), lines: read("--lines").split(" ") };
  }

  function axis(look, title, more) {
    return {
      title: { text: title, standoff: 8, font: { color: look.soft, size: 13 } }, color: look.soft, gridcolor: look.line,
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

  function drawLines(id, look, width) {
    const figure = figures[id];
    const lines = choiceOf(id).lines;
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
        x: line.x, y: line.y, name: line.name, legendgroup: line.name, mode: line.x.length > 60 ? "lines" : "lines+markers",
        line: { color: colour, dash: DASHES[line.style % DASHES.length], width: 2 },
        marker: { color: colour, symbol: MARKERS[line.style % MARKERS.length], size: 7 },
        hovertemplate: figure.percent ? "%{y:.1f} %" : "%{y:.4~g}",
      });
    }
    return [[...bands, ...traces], {
      ...baseLayout(look, width, 330 + 22 * Math.ceil(lines.length / Math.max(1, Math.floor(width / 170)))),
      margin: { l: 52, r: 10, t: 8, b: 8 }, hovermode: "x unified", showlegend: true,
      xaxis: axis(look, figure.x, figure.log ? { type: "log", tickmode: "array", tickvals: [...new Set(lines.flatMap((line) => line.x))] } : {}),
      yaxis: axis(look, figure.y, figure.percent ? { range: [-3, 103], dtick: 20 } : { rangemode: "tozero" }),
      legend: { orientation: "h", x: 0, xanchor: "left", y: -0.24, yanchor: "top", font: { size: 13 } },
    }];
  }

  const nearest = (values, wanted) => values.reduce((best, value, i) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? i : best), 0);

  function drawSurface(id, look, width) {
    const { e1, e2, loss, eps } = choiceOf(id);
    const side = (title) => ({ title: { text: title }, color: look.soft, gridcolor: look.line, tickfont: { size: 11 }, zeroline: false, showspikes: false, nticks: 6 });
    const [i, j] = [nearest(e2, 0), nearest(e1, 0)];
    return [[
      {
        type: "surface", x: e1, y: e2, z: loss, colorscale: "Viridis", showscale: false,
        contours: { x: { highlight: false }, y: { highlight: false }, z: { highlight: false } },
        hovertemplate: "e<sub>1</sub> %{x:.3f}, e<sub>2</sub> %{y:.3f}<br>loss %{z:.3f}<extra></extra>",
      },
      { type: "scatter3d", x: [e1[j]], y: [e2[i]], z: [loss[i][j]], mode: "markers", marker: { size: 4.5, symbol: "diamond", color: "#d55e00", line: { color: "#fff", width: 1 } }, hovertemplate: "the image<extra></extra>" },
    ], {
      ...baseLayout(look, width, width < 500 ? 330 : 440), margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, uirevision: "the reader's",
      scene: { xaxis: side("e<sub>1</sub>"), yaxis: side("e<sub>2</sub>"), zaxis: side("loss"), aspectmode: "manual", aspectratio: { x: 1, y: 1, z: 0.75 }, camera: { eye: EYE } },
    }];
  }

  function drawMaps(id, look, width) {
    const parts = choiceOf(id).map(([figure, choice, name]) => ({ name, ...figures[figure].choices[choice] }));
    const columns = parts.length === 1 ? 1 : Math.max(1, Math.min(parts.length, Math.floor(width / 150)));
    const rows = Math.ceil(parts.length / columns);
    const titled = parts.length > 1 ? 26 : 0;
    const below = rows > 1; // where the colour bar stands
    const height = parts.length === 1 ? Math.min(width, 400) : rows * (Math.min(width / columns, 330) + titled) + 40 + (below ? 50 : 0);
    const losses = parts.flatMap((part) => part.loss.flat()).filter((value) => value !== null);
    const layout = {
      ...baseLayout(look, width, height), margin: { l: 46, r: 8, t: titled, b: below ? 100 : 40 }, shapes: [], annotations: [],
      coloraxis: { colorscale: "Viridis", cmin: Math.min(...losses), cmax: Math.max(...losses), colorbar: { title: { text: "loss", side: below ? "top" : "right", font: { color: look.soft, size: 13 } }, ...(below ? { orientation: "h", y: 0, yref: "container", yanchor: "bottom" } : {}), thickness: 10, outlinewidth: 0, tickcolor: look.line, tickfont: { color: look.soft } } },
    };
    const traces = [];
    parts.forEach((part, i) => {
      const [column, row] = [i % columns, Math.floor(i / columns)];
      const name = i ? String(i + 1) : "";
      const gap = [columns > 1 ? 14 / width : 0, rows > 1 ? (titled + 18) / height : 0];
      const [wide, high] = [(1 - gap[0] * (columns - 1)) / columns, (1 - gap[1] * (rows - 1)) / rows];
      const left = column * (wide + gap[0]);
      const top = 1 - row * (high + gap[1]);
      const inner = { showgrid: false, constrain: "domain", nticks: 5 };
      layout["xaxis" + name] = axis(look, row === rows - 1 || i + columns >= parts.length ? "e<sub>1</sub>" : "", { ...inner, domain: [left, left + wide], anchor: "y" + name });
      layout["yaxis" + name] = axis(look, column === 0 ? "e<sub>2</sub>" : "", { ...inner, domain: [top - high, top], anchor: "x" + name, scaleanchor: "x" + name, showticklabels: column === 0, automargin: false });
      const place = { xref: "x" + name, yref: "y" + name };
      layout.shapes.push({ type: "rect", ...place, x0: -part.eps, x1: part.eps, y0: -part.eps, y1: part.eps, line: { color: "#fff", width: 1.5, dash: "dash" } });
      if (part.name) layout.annotations.push({ text: part.name, xref: `x${name} domain`, yref: `y${name} domain`, x: 0, y: 1, xanchor: "left", yanchor: "bottom", showarrow: false, font: { color: look.ink, size: 13 } });
      const axes = { xaxis: "x" + name, yaxis: "y" + name };
      traces.push({
        type: "contour", x: part.e1, y: part.e2, z: part.loss, coloraxis: "coloraxis", ncontours: 14, line: { width: 0.4, color: "rgba(255,255,255,.55)" }, contours: { coloring: "heatmap" }, ...axes,
        hovertemplate: "e<sub>1</sub> %{x:.3f}, e<sub>2</sub> %{y:.3f}<br>loss %{z:.3f}<extra></extra>",
      });
      traces.push({ x: [0], y: [0], mode: "markers", marker: { symbol: "x-thin", size: 10, line: { width: 2.5, color: "#fff" } }, hoverinfo: "skip", showlegend: false, ...axes });
    });
    return [traces, layout];
  }

  const KINDS = { lines: drawLines, surface: drawSurface, maps: drawMaps };

  function draw(id) {
    const element = at(id);
    const { kind } = figures[id];
    if (kind === "surface" && (!WEBGL || printing)) return;
    const width = printing ? (element.classList.contains("map") ? 420 : PRINTED) : element.clientWidth;
    const [traces, layout] = KINDS[kind](id, theme(), width);
    element.style.minHeight = "0";
    Plotly.react(element, traces, layout, { displayModeBar: false, scrollZoom: false, doubleClick: "reset" });
  }

  function drawShown(again) {
    for (const id of Object.keys(figures)) {
      const element = at(id);
      if (isShown(element) && (again || !element.data)) draw(id);
    }
    for (const box of document.querySelectorAll(".scroll")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  function choose(ids, place) {
    for (const id of ids) {
      chosen[id] = place;
      if (isShown(at(id))) draw(id);
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
    if (key === "Home") return Plotly.relayout(id, { "scene.camera.eye": EYE, "scene.camera.center": { x: 0, y: 0, z: 0 }, "scene.camera.up": { x: 0, y: 0, z: 1 } });
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
  document.addEventListener("toggle", () => drawShown(false), true);
  window.addEventListener("hashchange", openNamed);

  let pause;
  let width = innerWidth;
  window.addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar
    width = innerWidth;
    clearTimeout(pause);
    pause = setTimeout(() => drawShown(true), 150);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawShown(true));

  let closed = [];
  window.addEventListener("beforeprint", () => {
    printing = true;
    document.documentElement.classList.add("printing");
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
    drawShown(true);
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    document.documentElement.classList.remove("printing");
    for (const each of closed) each.open = false;
    drawShown(true);
  });

  if (!WEBGL) {
    for (const solid of document.querySelectorAll(".solid, .turn-back")) solid.hidden = true;
    for (const told of document.querySelectorAll(".no-webgl")) told.hidden = false;
  }
  drawShown(false);
  openNamed();
})();
