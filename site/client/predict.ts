// Predictions: the run unfolds when the reader commits, and the page says what they had said and what was measured.
import { all, one } from './dom.ts';
import { keep, memory } from './memory.ts';
import { score } from './quiz.ts';

function show(ask: HTMLElement, said: string): void {
  for (const input of all<HTMLInputElement>('form input', ask)) {
    input.disabled = true;
    input.checked = input.value === said;
    input.parentElement!.classList.toggle('mine', input.checked);
    input.parentElement!.classList.toggle('right', input.value === ask.dataset.answer);
  }
  const button = one<HTMLButtonElement>('button[type="submit"]', ask)!;
  button.disabled = true;
  const right = said === ask.dataset.answer;
  if (ask.classList.contains('quiz')) {
    button.textContent = 'Answered';
    one('.hint', ask)!.textContent = right ? 'Right.' : 'Not so: the answer that is marked is right.';
  } else {
    button.textContent = 'Committed';
    one('.hint', ask)!.textContent = right ? 'As measured. The run says why.' : 'Measured otherwise. The run says why.';
  }
  one<HTMLDetailsElement>(':scope > details', ask)!.open = true;
}

export function predict(): void {
  for (const ask of all('.ask')) {
    const form = one<HTMLFormElement>('form', ask)!;
    form.onsubmit = (event) => {
      event.preventDefault();
      const said = new FormData(form).get(ask.id);
      if (typeof said !== 'string') {
        one('.hint', ask)!.textContent = 'Choose one of the answers first.';
        return;
      }
      memory.said[ask.id] = said;
      keep();
      show(ask, said);
      score();
    };
    const said = memory.said[ask.id];
    if (said && all<HTMLInputElement>('form input', ask).some((input) => input.value === said)) show(ask, said);
  }
}
