// The rules of the problems, for the worker: reading a problem from text, and judging an answer. The
// model knows nothing of them. Messages agree with those of eqr/tasks/sudoku.py and eqr/tasks/maze.py, except that problems
// with several answers, which those refuse, get a note here.

export class ProblemError extends Error {}

const SYMBOLS = "123456789ABCDEFG"; // as eqr.tasks.sudoku

function units({ height: side, box_height, box_width }) {
  const made = [];
  for (let i = 0; i < side; i++) {
    const row = [], column = [], box = [];
    const top = Math.floor(i / (side / box_width)) * box_height, left = (i % (side / box_width)) * box_width;
    for (let j = 0; j < side; j++) {
      row.push(i * side + j);
      column.push(j * side + i);
      box.push((top + Math.floor(j / box_width)) * side + left + (j % box_width));
    }
    made.push([`row ${i + 1}`, row], [`column ${i + 1}`, column], [`box ${i + 1}`, box]);
  }
  return made;
}

const cellName = (cell, width) => `r${Math.floor(cell / width) + 1}c${(cell % width) + 1}`;

const sudoku = {
  parse(text, task) {
    const plain = text.replace(/\s/g, "").toUpperCase(), side = task.height;
    const known = SYMBOLS.slice(0, side);
    const bad = [...plain].findIndex((c) => !(known + ".0_").includes(c));
    if (bad >= 0) {
      throw new ProblemError(
        `character ${bad + 1} is '${plain[bad]}'; a ${side}x${side} Sudoku has ` +
          `1 to ${known[side - 1]}, and '.', '0' or '_' for a blank`,
      );
    }
    if (plain.length !== side * side) {
      throw new ProblemError(`${plain.length} characters; expected ${side * side} (${side}x${side})`);
    }
    return [...plain].map((c) => Math.max(known.indexOf(c) + 2, 1));
  },

  // What is wrong with a problem, or null; several solutions are reported by `note`.
  fault(tokens, task) {
    for (const [name, cells] of units(task)) {
      for (let token = 2; token <= task.height + 1; token++) {
        const twice = cells.filter((cell) => tokens[cell] === token);
        if (twice.length > 1) {
          const at = twice.slice(0, 2).map((cell) => cellName(cell, task.width)).join(" and ");
          return `${name} holds ${SYMBOLS[token - 2]} twice, at ${at}`;
        }
      }
    }
    return solutions(tokens, task, 1) ? null : "no solution: a given must be wrong";
  },

  note(tokens, task) {
    return solutions(tokens, task, 2) > 1 ? "This puzzle has several solutions." : "";
  },

  verdict(inputs, task) {
    const all = units(task);
    return (answer) => {
      const unmoved = inputs.every((token, i) => token < 2 || token === answer[i]);
      const sound = all.every(([, cells]) => new Set(cells.map((c) => answer[c]).filter((t) => t > 1)).size === task.height);
      return unmoved && sound;
    };
  },
};

// The number of solutions, counted up to `most`; boards up to 6x6 take milliseconds.
function solutions(tokens, task, most) {
  const side = task.height, cells = [...tokens], groups = units(task).map(([, own]) => own);
  const peers = cells.map((_, i) => [...new Set(groups.filter((g) => g.includes(i)).flat())].filter((j) => j !== i));
  const open = (i) => {
    const taken = new Set(peers[i].map((j) => cells[j]));
    return [...Array(side).keys()].map((k) => k + 2).filter((token) => !taken.has(token));
  };
  const count = (left) => {
    let at = -1, choices = null;
    for (let i = 0; i < cells.length; i++) {
      if (cells[i] > 1) continue;
      const left = open(i);
      if (!choices || left.length < choices.length) [at, choices] = [i, left];
    }
    if (at < 0) return 1;
    let sum = 0;
    for (const token of choices) {
      cells[at] = token;
      sum += count(left - sum);
      if (sum >= left) break;
    }
    cells[at] = 1;
    return sum;
  };
  return count(most);
}

const [WALL, START, GOAL, PATH] = [1, 3, 4, 5];

const maze = {
  parse(text, task) {
    const rows = text.replace(/^[\r\n]+|[\r\n]+$/g, "").replace(/\r/g, "").split(/[\n/]/);
    if (rows.length > 1) {
      if (rows.length !== task.height) throw new ProblemError(`${rows.length} rows; expected ${task.height}`);
      rows.forEach((row, i) => {
        if (row.length !== task.width) {
          throw new ProblemError(`row ${i + 1} has ${row.length} characters; expected ${task.width}`);
        }
      });
    }
    const cells = rows.join("");
    const bad = [...cells].findIndex((c) => !"#. SG".includes(c));
    if (bad >= 0) {
      const why = cells[bad] === "o" ? "the path is for the answer: write '.'" : "use # . S G";
      throw new ProblemError(`character ${bad + 1} is '${cells[bad]}'; ${why}`);
    }
    if (cells.length !== task.height * task.width) {
      throw new ProblemError(
        `${cells.length} characters; expected ${task.height * task.width} (${task.height}x${task.width})`,
      );
    }
    return [...cells.replace(/ /g, ".")].map((c) => "#.SG".indexOf(c) + 1);
  },

  fault(tokens, task) {
    for (const [token, char, name] of [[START, "S", "start"], [GOAL, "G", "goal"]]) {
      const count = tokens.filter((t) => t === token).length;
      if (count !== 1) return `${count} cells are ${char}; a maze has one ${name}`;
    }
    return shortest(tokens, task).steps ? null : "no way leads from S to G: open a wall";
  },

  note(tokens, task) {
    const { paths } = shortest(tokens, task);
    return paths > 1 ? `This maze has ${paths} shortest paths.` : "";
  },

  // The path cells must join S and G without a detour: as many as a shortest path has.
  verdict(inputs, task) {
    const wanted = shortest(inputs, task).steps;
    return (answer) => {
      const unmoved = inputs.every((token, i) => token === 2 || token === answer[i]);
      const only = answer.map((t) => (t === PATH || t === START || t === GOAL ? t : WALL));
      const marked = answer.filter((t) => t === PATH).length;
      return unmoved && marked === wanted - 1 && shortest(only, task).steps === wanted;
    };
  },
};

// Steps of a shortest path from S to G over all that is no wall, 0 where there is none; and how many
// such paths there are.
function shortest(tokens, { height, width }) {
  const reached = new Map([[tokens.indexOf(START), { steps: 0, paths: 1 }]]); // grows while walked
  for (const [cell, own] of reached) {
    if (tokens[cell] === GOAL) return own; // all cells one step nearer have been walked
    const row = Math.floor(cell / width), column = cell % width;
    for (const [r, c] of [[row - 1, column], [row + 1, column], [row, column - 1], [row, column + 1]]) {
      const next = r * width + c;
      if (r < 0 || c < 0 || r >= height || c >= width || tokens[next] === WALL) continue;
      const before = reached.get(next);
      if (!before) reached.set(next, { steps: own.steps + 1, paths: own.paths });
      else if (before.steps === own.steps + 1) before.paths += own.paths;
    }
  }
  return { steps: 0, paths: 0 };
}

export const RULES = { sudoku, maze };
