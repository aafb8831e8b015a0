// Shows who is signed in.

const base = document.querySelector('meta[name="wf-console"]').content;
const answer = await fetch(`${base}/session`);
const session = await answer.json();
const main = document.querySelector("#app");
main.textContent = session.signed_in ? `Signed in as ${session.subject}` : "Not signed in";
