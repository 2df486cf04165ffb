// The widget manager typesets labels through MathJax 2's queue, which version 3 lacks: an
// error on every page with widgets and mathematics. Hand such jobs to version 3.
document.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax && !window.MathJax.Hub) {
    window.MathJax.Hub = {
      Queue: (job) =>
        window.MathJax.startup.promise.then(() => window.MathJax.typesetPromise([job[2]])),
    };
  }
});

// From the disk a page cannot read another one, so that search shows titles without excerpts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// What scrolls sideways can be reached by keyboard; what does not is no stop on the way.
(() => {
  const kinds = [".pst-scrollable-table-container", ".cell_output .text_html", ".highlight pre",
    ".cell_output pre", ".math.notranslate", "mjx-container[display]"].join(", ");
  const look = () => {
    for (const box of document.querySelectorAll(kinds)) {
      const scrolls = box.scrollWidth > box.clientWidth + 1
        && getComputedStyle(box).overflowX !== "visible";
      if (scrolls) box.tabIndex = 0;
      else if (box.tabIndex === 0) box.removeAttribute("tabindex");
    }
  };
  window.addEventListener("load", () => {
    look();
    if (window.MathJax && window.MathJax.startup) window.MathJax.startup.promise.then(look);
  });
  window.addEventListener("resize", look);
})();

// A term of the glossary shows its definition when it is pointed at or has the focus. It stays
// while the pointer is on it, and Escape puts it away (WCAG 1.4.13). The definitions are a script,
// loaded with the first one: a page opened from the disk may load scripts but not read pages.
(() => {
  const root = document.documentElement.dataset.content_root || "./";
  const link = 'a[href*="glossary.html#term-"], dl.glossary a[href^="#term-"]';
  let tip = null, owner = null, timer = 0, loading = null;

  const terms = () => {
    loading ||= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${root}_static/glossary/terms.js`;
      script.onload = () => resolve(window.eqrTerms);
      script.onerror = reject;
      document.head.append(script);
    });
    return loading;
  };

  const hide = () => {
    clearTimeout(timer);
    owner?.removeAttribute("aria-describedby");
    owner = null;
    if (tip) tip.hidden = true;
  };

  const place = () => {
    const at = owner.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const most = document.documentElement.clientWidth - box.width - 8;
    const below = at.bottom + box.height + 12 < window.innerHeight;
    tip.style.left = `${window.scrollX + Math.max(8, Math.min(at.left, most))}px`;
    tip.style.top = `${window.scrollY + (below ? at.bottom + 4 : at.top - box.height - 4)}px`;
  };

  const show = async (term) => {
    if (term === owner) return;
    hide();
    owner = term;
    const found = await terms().catch(() => ({}));
    const definition = found[decodeURIComponent(term.hash.slice(1))];
    if (owner !== term || !definition) return;
    if (!tip) {
      tip = document.createElement("div");
      tip.id = "eqr-term";
      tip.className = "eqr-term";
      tip.setAttribute("role", "tooltip");
      tip.addEventListener("pointerenter", () => clearTimeout(timer));
      tip.addEventListener("pointerleave", leave);
      (document.querySelector("main") || document.body).append(tip);
    }
    tip.innerHTML = definition;
    tip.hidden = false;
    term.setAttribute("aria-describedby", tip.id);
    place();
    if (window.MathJax?.typesetPromise) {
      await window.MathJax.typesetPromise([tip]);
      if (owner === term) place();
    }
  };

  const leave = () => {
    clearTimeout(timer);
    timer = setTimeout(() => document.activeElement === owner || hide(), 250);
  };

  document.addEventListener("DOMContentLoaded", () => {
    for (const term of document.querySelectorAll(link)) {
      term.removeAttribute("title");
      term.addEventListener("pointerenter", (event) => {
        if (event.pointerType === "touch") return; // a tap follows the link
        clearTimeout(timer);
        timer = setTimeout(() => show(term), 120);
      });
      term.addEventListener("pointerleave", leave);
      term.addEventListener("focus", () => show(term));
      term.addEventListener("blur", leave);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && owner) hide();
  });
})();
