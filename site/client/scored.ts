// How a quiz went, in words.

/** "12 of 20 answered, 9 right"; nothing was answered: the number of questions. */
export function scored(questions: { answer: string; said: string | undefined }[]): string {
  const answered = questions.filter((question) => question.said !== undefined);
  const right = answered.filter((question) => question.said === question.answer).length;
  const count = `${questions.length} question${questions.length === 1 ? '' : 's'}`;
  if (!answered.length) return count;
  return `${answered.length === questions.length ? `All ${questions.length}` : `${answered.length} of ${questions.length}`} answered, ${right} right`;
}
