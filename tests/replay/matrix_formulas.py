"""The rules that see whole matrices, and the line rules of their family, as obvious formulas in double precision on matrices
as lists of rows. Each returns (weight, {state: matrix}) after one step per gradient."""
import math

from formulas import transpose

COEFFICIENTS = {
    "classic": [(3.4445, -4.7750, 2.0315)],
    "quintic": [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
                (2.8366, -3.0525, 1.2012)],
    "polar_express": [(8.2051, -22.9019, 16.4607), (4.0664, -2.8612, 0.5184), (3.9096, -2.8234, 0.5250),
                      (3.2856, -2.4153, 0.4853), (2.2779, -1.6198, 0.3985), (1.8726, -1.2307, 0.3585),
                      (1.8564, -1.2132, 0.3568), (1.8750, -1.2500, 0.3750)],
}


def matmul(a, b):
    columns = transpose(b)
    return [[math.fsum(x * y for x, y in zip(row, column)) for column in columns] for row in a]


def combine(alpha, a, beta, b):
    return [[alpha * x + beta * y for x, y in zip(ra, rb)] for ra, rb in zip(a, b)]


def norm(matrix):
    return math.sqrt(math.fsum(v * v for row in matrix for v in row))


def squares(line):
    return math.fsum(v * v for v in line)


def zeros(m, n):
    return [[0.0] * n for _ in range(m)]


def newton_schulz(d, steps=5, coefficients="classic", clamp=False):
    tall = len(d) > len(d[0])
    divisor = max(norm(d), 1e-7) if clamp else norm(d) + 1e-7
    x = [[v / divisor for v in row] for row in (transpose(d) if tall else d)]
    known = COEFFICIENTS[coefficients]
    for k in range(steps):
        a, b, c = known[k % len(known)] if coefficients != "polar_express" else known[min(k, len(known) - 1)]
        gram = matmul(x, transpose(x))
        poly = combine(b, gram, c, matmul(gram, gram))
        x = combine(a, x, 1, matmul(poly, x))
    return transpose(x) if tall else x


def mix(momentum, grad, mu, nesterov=True, heavy_ball=False):
    """Returns (momentum, direction)."""
    gain = 1 if heavy_ball else 1 - mu
    momentum = combine(mu, momentum, gain, grad)
    return momentum, combine(mu, momentum, gain, grad) if nesterov else momentum


def scaled(matrix, factor):
    return [[v * factor for v in row] for row in matrix]


def muon(weight, grads, lr, variant="moonlight", mu=0.95, **iteration):
    m, n = len(weight), len(weight[0])
    decay = {"moonlight": 0.1, "keller_jordan": 0, "torch": 0.1}[variant]
    scale = 0.2 * math.sqrt(max(m, n)) if variant == "moonlight" else math.sqrt(max(1, m / n))
    momentum = zeros(m, n)
    for grad in grads:
        momentum, d = mix(momentum, grad, mu, heavy_ball=variant == "moonlight")
        o = newton_schulz(d, clamp=variant == "torch", **iteration)
        weight = combine(1 - lr * decay, weight, -lr * scale, o)
    return weight, {"momentum": momentum}


def normuon(weight, grads, lr, scale="paper", mu=0.95, beta2=0.95, eps=1e-10, **iteration):
    m, n = len(weight), len(weight[0])
    momentum, v = zeros(m, n), [0.0] * m
    for grad in grads:
        momentum, d = mix(momentum, grad, mu)
        o = newton_schulz(d, **iteration)
        v = [beta2 * old + (1 - beta2) * squares(row) / n for old, row in zip(v, o)]
        a = [[x / (math.sqrt(vi) + eps) for x in row] for row, vi in zip(o, v)]
        if scale == "paper":
            factor = 0.2 * math.sqrt(m * n) / norm(a) if norm(a) > 0 else 0
        else:
            factor = norm(o) / (norm(a) + 1e-10) * math.sqrt(max(1, m / n))
        weight = combine(1, weight, -lr * factor, a)
    return weight, {"momentum": momentum, "row_moment": [[x] for x in v]}


def normuon_per_shard(weight, grads, lr, parts, by_columns, mu=0.95, beta2=0.95, eps=1e-10):
    """NorMuon (scale=code) as it comes out where each of `parts` shards takes its own norms and means: wrong."""
    m, n = len(weight), len(weight[0])
    momentum, v = zeros(m, n), {}
    for grad in grads:
        momentum, d = mix(momentum, grad, mu)
        o = newton_schulz(d)
        o = transpose(o) if by_columns else o
        weight = transpose(weight) if by_columns else weight
        size = -(-len(o) // parts)
        for begin in range(0, len(o), size):
            shard = o[begin : begin + size]
            lines = transpose(shard) if by_columns else shard  # rows of the matrix, as far as the shard has them
            old = v.get(begin, [0.0] * len(lines))
            v[begin] = [beta2 * a + (1 - beta2) * squares(line) / len(line) for a, line in zip(old, lines)]
            a = [[x / (math.sqrt(vi) + eps) for x in line] for line, vi in zip(lines, v[begin])]
            factor = norm(shard) / (norm(a) + 1e-10) * math.sqrt(max(1, m / n))
            a = transpose(a) if by_columns else a
            weight[begin : begin + size] = combine(1, weight[begin : begin + size], -lr * factor, a)
        weight = transpose(weight) if by_columns else weight
    return weight


def adamuon_per_shard(weight, grads, lr, parts, by_columns, mu=0.95, eps=1e-8, decay=0.01):
    """AdaMuon where each shard takes its own norm: wrong."""
    m, n = len(weight), len(weight[0])
    momentum, v = zeros(m, n), zeros(m, n)
    for grad in grads:
        momentum, d = mix(momentum, grad, mu)
        o = newton_schulz([[float((x > 0) - (x < 0)) for x in row] for row in d])
        v = combine(mu, v, 1 - mu, [[x * x for x in row] for row in o])
        a = [[x / (math.sqrt(y) + eps) for x, y in zip(ro, rv)] for ro, rv in zip(o, v)]
        a, weight = (transpose(a), transpose(weight)) if by_columns else (a, weight)
        size = -(-len(a) // parts)
        for begin in range(0, len(a), size):
            shard = a[begin : begin + size]
            factor = 0.2 * math.sqrt(len(shard) * len(shard[0])) / (norm(shard) + eps)
            weight[begin : begin + size] = combine(1 - lr * decay, weight[begin : begin + size], -lr * factor, shard)
        weight = transpose(weight) if by_columns else weight
    return weight


def adamuon(weight, grads, lr, mu=0.95, eps=1e-8, decay=0.01, **iteration):
    m, n = len(weight), len(weight[0])
    momentum, v = zeros(m, n), zeros(m, n)
    for grad in grads:
        momentum, d = mix(momentum, grad, mu)
        o = newton_schulz([[float((x > 0) - (x < 0)) for x in row] for row in d], **iteration)
        v = combine(mu, v, 1 - mu, [[x * x for x in row] for row in o])
        a = [[x / (math.sqrt(y) + eps) for x, y in zip(ro, rv)] for ro, rv in zip(o, v)]
        weight = combine(1 - lr * decay, weight, -lr * 0.2 * math.sqrt(m * n) / (norm(a) + eps), a)
    return weight, {"momentum": momentum, "second_moment": v}


def median(values):
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def trasmuon(weight, grads, lr, damping="trigger", mu=0.95, beta2=0.95, eps=1e-8, alpha=1.0, trigger=1.0, least=0.1,
             damping_beta=0.9, energy_beta=0.95, **iteration):
    m, n = len(weight), len(weight[0])
    momentum, v, c, reference = zeros(m, n), [0.0] * m, [1.0] * n, 0.0
    for t, grad in enumerate(grads, 1):
        momentum, _ = mix(momentum, grad, mu)
        o = newton_schulz(momentum, **iteration)
        v = [beta2 * old + (1 - beta2) * squares(row) / n for old, row in zip(v, o)]
        b = [[x / math.sqrt(vi + eps) for x in row] for row, vi in zip(o, v)]
        energy = [squares(column) for column in transpose(momentum)]
        reference = median(energy) if t == 1 else energy_beta * reference + (1 - energy_beta) * median(energy)
        for j in range(n):
            ratio = energy[j] / (reference + eps)
            if damping == "smooth":
                c[j] = min(1.0, max(least, 1 / (1 + alpha * math.log1p(ratio))))
                continue
            raw = 1.0 if ratio <= trigger else min(1.0, max(least, 1 / (1 + alpha * math.log1p(ratio / trigger))))
            c[j] = damping_beta * c[j] + (1 - damping_beta) * raw
        update = [[x * cj for x, cj in zip(row, c)] for row in b]
        weight = combine(1, weight, -lr * math.sqrt(m * n) / (norm(b) + eps), update)
    return weight, {"momentum": momentum, "row_moment": [[x] for x in v], "energy_reference": [[reference]],
                    "damped": [[1 - x for x in c]]}


def namo(weight, grads, lr, form="code", mu=0.95, beta2=0.99, eps=1e-8, decay=0.1, **iteration):
    m, n = len(weight), len(weight[0])
    momentum, v = zeros(m, n), 0.0
    for t, grad in enumerate(grads, 1):
        momentum, d = mix(momentum, grad, mu)
        o = newton_schulz(d, **iteration)
        v = beta2 * v + (1 - beta2) * norm(grad) ** 2
        a = lr * math.sqrt(1 - beta2**t) / (1 - mu**t + 1e-12) * norm(d) / (math.sqrt(v) + eps)
        if form == "paper":
            weight = combine(1 - decay * a, weight, -a, o)
        else:
            weight = combine(1 - decay * min(a, 1), weight, -min(0.2 * math.sqrt(max(m, n)) * a, 1), o)
    return weight, {"momentum": momentum, "gradient_moment": [[v]]}


def namo_d(weight, grads, lr, form="code", mu=0.95, beta2=0.99, eps=1e-8, decay=0.1, c=0.75, **iteration):
    m, n = len(weight), len(weight[0])
    momentum, v = zeros(m, n), [0.0] * n
    for t, grad in enumerate(grads, 1):
        momentum, d = mix(momentum, grad, mu)
        o = newton_schulz(d, **iteration)
        v = [beta2 * old + (1 - beta2) * squares(column) for old, column in zip(v, transpose(grad))]
        s = [math.sqrt(squares(column)) / (math.sqrt(vj) + eps) for column, vj in zip(transpose(d), v)]
        mean = math.fsum(s) / n
        if mean > 0:
            s = [min(max(x, c * mean), mean / c) for x in s]
        b = lr * math.sqrt(1 - beta2**t) / (1 - mu**t + 1e-12)
        scale = 0.2 * math.sqrt(max(m, n))
        if form == "paper":
            weight = [[w * (1 - decay * b * sj) - b * sj * x for w, x, sj in zip(rw, ro, s)] for rw, ro in zip(weight, o)]
        else:
            weight = [[w * max(0, 1 - decay * min(b * sj, 1)) - min(scale * b * sj, 1) * x for w, x, sj in zip(rw, ro, s)]
                      for rw, ro in zip(weight, o)]
    return weight, {"momentum": momentum, "gradient_moment": [v]}


def unit_rows(matrix, eps, guard):
    out = []
    for row in matrix:
        length = math.sqrt(squares(row))
        out.append([0.0] * len(row) if length <= 2.0**-126 else
                   [x / (length + eps if guard == "add" else max(length, eps)) for x in row])
    return out


def row_norm(weight, grads, lr, mu=0.95, eps=1e-8, guard="add"):
    momentum = zeros(len(weight), len(weight[0]))
    for grad in grads:
        momentum = combine(mu, momentum, 1 - mu, grad)
        weight = combine(1, weight, -lr, unit_rows(momentum, eps, guard))
    return weight, {"momentum": momentum}


def column_norm(weight, grads, lr, **settings):
    weight, states = row_norm(transpose(weight), [transpose(g) for g in grads], lr, **settings)
    return transpose(weight), {name: transpose(state) for name, state in states.items()}


def centred(matrix):
    means = [math.fsum(column) / len(matrix) for column in transpose(matrix)]
    return [[x - mean for x, mean in zip(row, means)] for row in matrix]


def centred_row_norm(weight, grads, lr, mu=0.95, eps=1e-8, guard="add"):
    momentum = zeros(len(weight), len(weight[0]))
    for grad in grads:
        momentum = combine(mu, momentum, 1 - mu, grad)
        weight = combine(1, weight, -lr, centred(unit_rows(centred(momentum), eps, guard)))
    return weight, {"momentum": momentum}
