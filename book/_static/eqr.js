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
