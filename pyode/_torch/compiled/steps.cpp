// Many steps in one call: the loop of loop.py and the pass of discrete.py where nothing out of the
// ordinary happens. Compiled with STATE, the type of a state's entries, COUNT, the number of
// arguments of the kernels of one program, and CALL(f, p), which calls these with p.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

const double EPS = std::numeric_limits<double>::epsilon();
const double STRETCH = 1.05;  // of steps that would nearly reach a target, as in loop.py
const int MOST = 32;          // stages

// What an argument is: `at` itself, or a place `at` bytes into the row of a step, one of two places
// that steps use in turn or the other of them, the cotangents of stages, one of f's tensors.
enum Kind { FIXED, ROW, OWN, CARRIED, STAGES, TENSOR };

bool called(void **f, char **p) {
    try {
        CALL(f, p);
        return true;
    } catch (...) {  // Python, which is to hear of it, calls them again
        return false;
    }
}

void add(STATE *to, const STATE *from, STATE times, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += times * from[i];
}

}  // namespace

extern "C" {

// As machine.py has them.
struct Layout {
    const int64_t *kind, *at;  // of each argument; TENSOR + i: f's i-th
    int64_t row;               // bytes
    int64_t y, stages, sizes;  // in a row: bytes to the step's end, its stages, sizes of its error
    int64_t numbers;           // and to its times
    int64_t n, rows;           // entries of a state; rows of the stages, of the dense output
    int64_t degree;            // of the dense output, and its coefficients
    const double *dense;
};

struct Outputs {
    const double *times;
    STATE *rows;  // values, or cotangents, of n entries each
    int64_t count, next;
};

struct Control {
    double t, h, before, earlier;  // the loop's: time, intended step, errors of the last two steps
    double target, sign, span, max_step, safety, order, i, p, d, factor_min, factor_max;
    double widest;                 // of the rejected attempts since the last accepted one
    int64_t room, tries;           // steps that fit, attempts at most
    int64_t spans, estimates;      // sizes of errors: parts of the state, estimates of each
    int64_t taken, attempts, row;  // accepted, attempted, rejected since the last accepted one
};

struct Pass {
    int64_t steps, last;  // how many, and the row of the last of them
    int64_t room;         // bytes of each of the two places
    int64_t outputs;      // of the program: where they are in a place, and their bytes
    const int64_t *at, *bytes;
    const double *nodes;  // from the start of the first step to the end of the last
};
}

namespace {

// Weights of the stages at a time in a step, times its length.
void weigh(const Layout &l, double t0, double t1, double t, STATE *w) {
    const double h = t1 - t0, x = (t - t0) / h;
    double base[MOST];
    for (int64_t j = 0; j < l.degree; j++)
        base[j] = std::pow(x, double(j + 1)) * std::pow(1.0 - x, double(l.degree - 1 - j));
    for (int64_t r = 0; r < l.rows; r++) {
        double sum = 0.0;
        for (int64_t j = 0; j < l.degree; j++) sum += l.dense[r * l.degree + j] * base[j];
        w[r] = STATE(h * sum);
    }
}

STATE *entries(char *memory, int64_t at) { return reinterpret_cast<STATE *>(memory + at); }

// Outputs inside a step and at its end.
void write(const Layout &l, char *row, double t0, double t1, double sign, Outputs &out) {
    const STATE *start = entries(row - l.row, l.y), *k = entries(row, l.stages);
    STATE w[MOST];
    for (; out.next < out.count && sign * (out.times[out.next] - t1) < 0; out.next++) {
        STATE *to = out.rows + out.next * l.n;
        std::memcpy(to, start, l.n * sizeof(STATE));
        weigh(l, t0, t1, out.times[out.next], w);
        for (int64_t r = 0; r < l.rows; r++) add(to, k + r * l.n, w[r], l.n);
    }
    if (out.next < out.count && out.times[out.next] == t1)
        std::memcpy(out.rows + out.next++ * l.n, entries(row, l.y), l.n * sizeof(STATE));
}

}  // namespace

extern "C" {

// Takes steps until the target is reached, `room` or `tries` are used up, a step would be too short,
// or an attempt is not finite or throws (an index out of range), which the loop then makes itself. Row s + 1 of the memory is that of
// step s, row 0 has its start. times[s] is where step s ends. Without `out`, no outputs.
void ahead(const Layout *l, Control *c, Outputs *out, void **f, char *memory, char **tensors,
           double *times) {
    char *p[COUNT];
    while (c->taken < c->room && c->attempts < c->tries && c->t != c->target) {
        double size = std::min(std::max(c->h, 0.0), c->max_step), t1;
        const double left = std::fabs(c->target - c->t);
        if (size >= left * (1 - 1e-10) || std::min(STRETCH * size, c->max_step) >= left) {
            size = left;
            t1 = c->target;
        } else {
            if (2 * std::min(STRETCH * size, c->max_step) > left) size = 0.5 * left;
            t1 = c->t + c->sign * size;
            size = std::fabs(t1 - c->t);
        }
        const bool close = t1 == c->target && size < c->span && c->row == 0;
        if (size <= std::max(16 * EPS * std::fabs(c->t), EPS * EPS * c->span) && !close) return;

        char *row = memory + (c->taken + 1) * l->row;
        double *number = reinterpret_cast<double *>(row + l->numbers);
        number[0] = c->t;
        number[1] = t1;
        for (int64_t j = 0; j < COUNT; j++) {
            const int64_t kind = l->kind[j], at = l->at[j];
            p[j] = kind == FIXED ? reinterpret_cast<char *>(at)
                 : kind == ROW   ? row + at
                                 : tensors[kind - TENSOR] + at;
        }
        if (!called(f, p)) return;

        const double *each = reinterpret_cast<const double *>(row + l->sizes);
        double errors[2] = {0.0, 0.0};
        for (int64_t e = 0; e < c->estimates; e++) {
            for (int64_t s = 0; s < c->spans; s++, each++) {
                if (!std::isfinite(*each)) return;
                errors[e] = std::max(errors[e], *each);
            }
            errors[e] *= std::fabs(t1 - c->t);
        }
        double error = errors[0];
        if (c->estimates == 2) {  // DOP853
            const double below = std::hypot(errors[0], 0.1 * errors[1]);
            error = below == 0 ? 0.0 : errors[0] * errors[0] / below;
        }
        if (!std::isfinite(error)) return;
        c->attempts++;
        if (error > 1.0) {
            c->row++;
            c->widest = std::max(c->widest, size);
            const double factor =
                std::max(c->factor_min, c->safety * std::pow(error, -1 / c->order));
            c->h = size * std::min(factor, 0.9);
            continue;
        }
        error = std::max(error, 1e-10);
        double factor = c->safety * std::pow(error, -(c->i + c->p + c->d) / c->order);
        factor *= std::pow(c->before, (c->p + 2 * c->d) / c->order) *
                  std::pow(c->earlier, -c->d / c->order);
        const double ceiling = c->row ? 1.0 : c->factor_max;
        const double proposal = size * std::min(ceiling, std::max(c->factor_min, factor));
        const bool brief = size < c->h * (1 - 1e-9);
        c->h = brief && c->row == 0 ? std::max(proposal, c->h) : proposal;
        c->earlier = c->before;
        c->before = error;
        if (out) write(*l, row, c->t, t1, c->sign, *out);
        c->t = times[c->taken++] = t1;
        c->row = 0;
        c->widest = 0.0;
    }
}

// Transposes steps, the last first. Cotangents of outputs are put on the ends and the stages of
// steps, those of `outputs` before the `next`-th. `places` are the two, and room for cotangents of
// the stages of a step; `carried` what the program is given for the last step. Whether none threw.
bool back(const Layout *l, const Pass *c, Outputs *out, void **f, char *memory, char *places,
          char **tensors, char **carried) {
    char *p[COUNT];
    STATE w[MOST], *none = entries(places, 2 * c->room), *stages = none + (l->rows) * l->n;
    std::memset(none, 0, l->rows * l->n * sizeof(STATE));
    for (int64_t i = 0; i < c->outputs; i++)
        std::memcpy(places + c->room + c->at[i], carried[i], c->bytes[i]);
    const double sign = c->nodes[c->steps] > c->nodes[0] ? 1.0 : -1.0;
    for (int64_t s = 0; s < c->steps; s++) {
        char *row = memory + (c->last - s + 1) * l->row, *own = places + s % 2 * c->room;
        char *other = places + (s + 1) % 2 * c->room;
        STATE *before = entries(other, c->at[0]), *after = entries(own, c->at[0]);
        const double t0 = c->nodes[c->steps - s - 1], t1 = c->nodes[c->steps - s];
        if (out->next > 0 && out->times[out->next - 1] == t1)
            add(before, out->rows + --out->next * l->n, 1, l->n);
        const int64_t last = out->next;
        while (out->next > 0 && sign * (out->times[out->next - 1] - t0) > 0) {
            if (out->next == last) std::memset(stages, 0, l->rows * l->n * sizeof(STATE));
            const STATE *g = out->rows + --out->next * l->n;
            weigh(*l, t0, t1, out->times[out->next], w);
            for (int64_t r = 0; r < l->rows; r++) add(stages + r * l->n, g, w[r], l->n);
        }
        for (int64_t j = 0; j < COUNT; j++) {
            const int64_t kind = l->kind[j], at = l->at[j];
            p[j] = kind == FIXED     ? reinterpret_cast<char *>(at)
                 : kind == ROW       ? row + at
                 : kind == OWN       ? own + at
                 : kind == CARRIED   ? other + at
                 : kind == STAGES    ? reinterpret_cast<char *>(out->next < last ? stages : none)
                                     : tensors[kind - TENSOR] + at;
        }
        if (!called(f, p)) return false;
        for (int64_t i = out->next; i < last; i++) add(after, out->rows + i * l->n, 1, l->n);
    }
    return true;
}
}
