// Replaces the live part of the page once a second, until the order has ended.
const live = document.getElementById("live");
async function refresh() {
  try {
    const answer = await fetch(location.pathname + "/live");
    if (answer.ok) {
      const html = await answer.text();
      // Leave an unchanged page alone, so that the keyboard focus stays where it is.
      if (html !== refresh.last) live.innerHTML = refresh.last = html;
    }
  } catch {
    // The shop is restarting: try again.
  }
  setTimeout(refresh, 1000);
}
if (live) refresh();
