// Replaces the panels that have changed. Without this script the page reloads itself.
'use strict';
(() => {
  const live = document.getElementById('live');
  const waiting = new Map();
  let last = 0;

  function show(text, isStale) {
    live.textContent = text;
    live.classList.toggle('stale', isStale);
  }

  // A button that is replaced while it is pressed would lose the click.
  function replace(panel) {
    const body = document.getElementById(panel.id);
    if (!body || body.dataset.hash === panel.hash) {
      return;
    }
    if (body.matches(':active')) {
      waiting.set(panel.id, panel);
      return;
    }
    const focus = body.contains(document.activeElement) ? document.activeElement : null;
    const open = Array.from(body.querySelectorAll('details[open]'), (details) => details.id);
    body.innerHTML = panel.html;
    body.dataset.hash = panel.hash;
    for (const id of open) {
      const details = document.getElementById(id);
      if (details) {
        details.open = true;
      }
    }
    if (focus) {
      const same = focus.id ? document.getElementById(focus.id) : find(body, focus);
      (same || document.getElementById('h-' + panel.id) || document.getElementById('main')).focus({ preventScroll: true });
    }
  }

  // Links and summaries have no id; the same text or the same list is the same element.
  function find(body, focus) {
    const details = focus.closest('details');
    if (focus.tagName === 'SUMMARY' && details) {
      const again = document.getElementById(details.id);
      return again && again.querySelector('summary');
    }
    return Array.from(body.querySelectorAll(focus.tagName)).find((other) => other.textContent === focus.textContent);
  }

  setInterval(() => {
    for (const [id, panel] of waiting) {
      waiting.delete(id);
      replace(panel);
    }
    if (last && Date.now() - last > 20000) {
      show('Not live: nothing has arrived for 20 s', true);
    }
  }, 300);

  function connect() {
    const source = new EventSource('/events');
    source.onopen = () => {
      last = Date.now();
    };
    source.addEventListener('panel', (event) => {
      last = Date.now();
      const panel = JSON.parse(event.data);
      waiting.delete(panel.id);
      replace(panel);
      show('live, ' + new Date().toISOString().slice(11, 19) + ' UTC', false);
    });
    // Nothing has changed, and the stream is open.
    source.addEventListener('alive', () => {
      last = Date.now();
      show('live, ' + new Date().toISOString().slice(11, 19) + ' UTC', false);
    });
    source.onerror = () => {
      show('Not live: reconnecting', true);
      if (source.readyState === EventSource.CLOSED) {
        setTimeout(connect, 5000);
      }
    };
  }
  connect();
})();
