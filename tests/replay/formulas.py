"""The update rules as obvious formulas in double precision, on matrices as lists of rows."""
import math

TINY = 2.0**-126  # smallest normal fp32


def p_norm(values, p):
    if p == "1":
        return sum(abs(v) for v in values)
    if p == "2":
        return math.sqrt(math.fsum(v * v for v in values))
    return max(abs(v) for v in values)


def transpose(matrix):
    return [list(column) for column in zip(*matrix)]


def normalise_rows(matrix, p, eps):
    out = []
    for row in matrix:
        norm = p_norm(row, p)
        inverse = 0.0 if norm <= TINY else 1.0 / max(norm, eps)
        out.append([v * inverse for v in row])
    return out


def reg(weight, grads, lr, mu=0.95, rho=0.2, weight_decay=0.01, p="2", passes=1, eps=1e-12):
    """Returns (weight, momentum) after one step per gradient. The last pass runs along the rows when the matrix is at least as
    wide as tall; passes alternate."""
    m, n = len(weight), len(weight[0])
    wide = m <= n
    momentum = [[0.0] * n for _ in range(m)]
    for grad in grads:
        momentum = [[mu * a + (1 - mu) * g for a, g in zip(ra, rg)] for ra, rg in zip(momentum, grad)]
        direction = momentum
        for k in range(passes):
            by_rows = wide == ((passes - 1 - k) % 2 == 0)
            direction = normalise_rows(direction, p, eps) if by_rows else transpose(normalise_rows(transpose(direction), p, eps))
        if p == "2":
            rms = math.sqrt(1.0 / max(m, n))  # closed form; dead lines keep it
        else:
            rms = math.sqrt(math.fsum(v * v for row in direction for v in row) / (m * n))
        scale = rho / rms if rms > 0 else 0.0
        weight = [[w - lr * (scale * a + weight_decay * w) for w, a in zip(rw, ra)] for rw, ra in zip(weight, direction)]
    return weight, momentum


def adamw(weight, grads, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01):
    """Returns (weight, moment1, moment2); the same formula as torch.optim.AdamW."""
    m, n = len(weight), len(weight[0])
    first = [[0.0] * n for _ in range(m)]
    second = [[0.0] * n for _ in range(m)]
    for t, grad in enumerate(grads, 1):
        for i in range(m):
            for j in range(n):
                g = grad[i][j]
                w = weight[i][j] * (1 - lr * weight_decay)
                first[i][j] = beta1 * first[i][j] + (1 - beta1) * g
                second[i][j] = beta2 * second[i][j] + (1 - beta2) * g * g
                denominator = math.sqrt(second[i][j]) / math.sqrt(1 - beta2**t) + eps
                weight[i][j] = w - lr / (1 - beta1**t) * first[i][j] / denominator
    return weight, first, second
