import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cleaned } from '../client/kept.ts';

const none = { read: {}, said: {} };

test('what was kept is read again', () => {
  const kept = { read: { 1: true, 2: false }, said: { 'ask-1': 'b' }, theme: 'dark' };
  assert.deepEqual(cleaned(kept), kept);
});

test('an entry of another shape counts as none', () => {
  for (const kept of [null, 7, 'dark', [], [1], { read: null, said: 5 }, { read: [true], said: 'x', theme: 'mauve' }, { theme: {} }])
    assert.deepEqual(cleaned(kept), none, JSON.stringify(kept));
  assert.deepEqual(cleaned({ read: { 1: 'yes', 2: true }, said: { a: 1, b: 'c' } }), { read: { 2: true }, said: { b: 'c' } });
});
