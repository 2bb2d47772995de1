"""References for the federated algorithms, in NumPy, from the papers' formulas and with none of the platform's code: the problems with
closed forms, local training, server steps, limits. Imported by the end-to-end tests; as a program it prints the worked trajectories.

    python3 tests/golden/generate.py
"""
import math

import numpy as np


# ---- problems: lists of symmetric matrices A_i and centres b_i, f_i(x) = ½ (x − b_i)ᵀ A_i (x − b_i) ----

def q4():
    a = [[[1, 0], [0, 2]], [[2, .5], [.5, 1]], [[.5, 0], [0, 3]], [[1.5, -.3], [-.3, .8]]]
    b = [[4, 0], [0, 3], [-3, -1], [1, -4]]
    return [np.array(m, float) for m in a], [np.array(v, float) for v in b]


def g(clients, d):
    """Diagonal, without random numbers; low and high clients pull apart, so that a bias towards some of them shows."""
    phi = (math.sqrt(5) - 1) / 2
    a, b = [], []
    for i in range(clients):
        diagonal = [.5 + (phi * (d * i + j + 1)) % 1 for j in range(d)]
        a.append(np.diag(diagonal))
        b.append(np.array([3 * math.cos(1.1 * (i + 1) + .7 * j) + 2 * (-1)**j * (2 * i / (clients - 1) - 1) for j in range(d)]))
    return a, b


def random_spd(clients, d, seed):
    rng = np.random.default_rng(seed)
    a = []
    for _ in range(clients):
        m = rng.normal(size=(d, d))
        a.append(m @ m.T / d + .3 * np.eye(d))
    return a, [rng.normal(size=d) * 2 for _ in range(clients)]


def optimum(a, b):
    return np.linalg.solve(sum(a), sum(m @ v for m, v in zip(a, b)))


def loss(a, b, x):
    return .5 * (x - b) @ a @ (x - b)


# ---- local training ----

def train(a, b, x, lr, steps, mu=0.0, direction=None):
    """x after `steps` of y ← y − lr·(direction(∇f(y)) + mu·(y − x))."""
    y = x.copy()
    for _ in range(steps):
        gradient = a @ (y - b)
        y = y - lr * ((gradient if direction is None else direction(gradient, y)) + mu * (y - x))
    return y


def each(value, i):
    return value[i] if isinstance(value, (list, tuple, np.ndarray)) else value


def step_norm(steps, lr, mu=0.0):
    return steps if mu == 0 else (1 - (1 - lr * mu)**steps) / (lr * mu)


# ---- strategies without client state: the models x¹, x², … ----

def trajectory(name, problem, versions, lr, steps, params=None, schedule=None, weights=None, start=None):
    """`schedule(r)`: the participants of round r (default: all). `weights`: n_i (default 1)."""
    a, b = problem
    clients, d = len(a), len(b[0])
    p = dict(params or {})
    rate = p.get('server_lr', .01 if name in ('fedadam', 'fedyogi', 'fedadagrad') else 1.0)
    x = np.zeros(d) if start is None else np.array(start, float)
    n = np.ones(clients) if weights is None else np.array(weights, float)
    momentum, second = np.zeros(d), np.full(d, p.get('initial_v', 0.0))
    out = []
    for r in range(versions):
        chosen = list(range(clients)) if schedule is None else schedule(r)
        mu = p.get('mu', .1) if name == 'fedprox' else 0.0
        delta = {i: train(a[i], b[i], x, each(lr, i), each(steps, i), mu) - x for i in chosen}
        share = {i: n[i] / sum(n[k] for k in chosen) for i in chosen}
        mean = sum(share[i] * delta[i] for i in chosen)
        if name in ('fedavg', 'fedprox'):
            x = x + rate * mean
        elif name == 'fedavgm':
            momentum = p.get('beta', .9) * momentum + mean
            x = x + rate * momentum
        elif name == 'fednova':
            norm = {i: step_norm(each(steps, i), each(lr, i)) for i in chosen}
            x = x + rate * sum(share[i] * norm[i] for i in chosen) * sum(share[i] * delta[i] / norm[i] for i in chosen)
        elif name == 'qfedavg':
            q, lipschitz = p.get('q', 1.0), p.get('lipschitz', 1 / each(lr, 0))
            f = {i: loss(a[i], b[i], x) + 1e-10 for i in chosen}
            top = sum(f[i]**q * lipschitz * delta[i] for i in chosen)
            bottom = sum(q * f[i]**(q - 1) * lipschitz**2 * delta[i] @ delta[i] + lipschitz * f[i]**q for i in chosen)
            x = x + rate * top / bottom
        elif name in ('fedadam', 'fedyogi', 'fedadagrad'):
            beta1, beta2 = p.get('beta1', 0.0 if name == 'fedadagrad' else .9), p.get('beta2', .99)
            momentum = beta1 * momentum + (1 - beta1) * mean
            square = mean**2
            if name == 'fedadam':
                second = beta2 * second + (1 - beta2) * square
            elif name == 'fedyogi':
                second = second - (1 - beta2) * square * np.sign(second - square)
            else:
                second = second + square
            x = x + rate * momentum / (np.sqrt(second) + p.get('tau', 1e-3))
        else:
            raise ValueError(name)
        out.append(x)
    return out


# ---- the momentum family and SCAFFOLD (Cheng et al., ICLR 2024; Karimireddy et al., ICML 2020, option II) ----

def momentum_trajectory(name, problem, versions, lr, steps, beta=1.0, warm_start=False, schedule=None, server_lr=1.0):
    a, b = problem
    clients, d = len(a), len(b[0])
    control, reduced = name.startswith('scaffold'), name.endswith('_vr')
    x = before = np.zeros(d)
    g, c, own = np.zeros(d), np.zeros(d), np.zeros((clients, d))
    out = []
    for r in range(versions):
        chosen = list(range(clients)) if schedule is None else schedule(r)
        if warm_start and r == 0:
            gradients = {i: a[i] @ (x - b[i]) for i in chosen}
            g = sum(gradients.values()) / len(chosen)
            if control:
                c = sum(gradients.values()) / clients
                for i in chosen:
                    own[i] = gradients[i]
            before = x
            out.append(x)
            continue
        deltas, changes = [], np.zeros(d)
        for i in chosen:
            y, total = x.copy(), np.zeros(d)
            for _ in range(steps):
                fresh = a[i] @ (y - b[i])
                total += fresh / steps
                correction = beta * (c - own[i]) if control else 0
                if reduced:
                    direction = fresh - (1 - beta) * (a[i] @ (before - b[i])) + correction + (1 - beta) * g
                else:
                    direction = beta * fresh + correction + (1 - beta) * g
                y = y - lr * direction
            deltas.append(y - x)
            if control:
                changes += total - own[i]
                own[i] = total
        mean = sum(deltas) / len(chosen)
        g = -mean / (lr * steps)
        c = c + changes / clients
        before, x = x, x + server_lr * mean
        out.append(x)
    return out


# ---- consensus ADMM on quadratics, exact local solves ----

def admm(problem, versions, rho, start=None):
    """Dual-first consensus ADMM, all clients, clean links, written with its multipliers: x¹, x², …"""
    a, b = problem
    d = len(b[0])
    x = np.zeros(d) if start is None else np.array(start, float)
    w, dual, first, out = [None] * len(a), [np.zeros(d) for _ in a], True, []
    for _ in range(versions):
        for i in range(len(a)):
            if not first:
                dual[i] = dual[i] + rho * (w[i] - x)
            w[i] = np.linalg.solve(a[i] + rho * np.eye(d), a[i] @ b[i] - dual[i] + rho * x)
        first = False
        x = sum(w[i] + dual[i] / rho for i in range(len(a))) / len(a)
        out.append(x)
    return out


def fedadmm(problem, versions, rho, start=None, schedule=None):
    """Primal first with a table of u_i = w_i + λ_i/ρ of all clients."""
    a, b = problem
    clients, d = len(a), len(b[0])
    x = np.zeros(d) if start is None else np.array(start, float)
    rows, dual, out = np.tile(x, (clients, 1)), np.zeros((clients, d)), []
    for r in range(versions):
        for i in range(clients) if schedule is None else schedule(r):
            w = np.linalg.solve(a[i] + rho * np.eye(d), a[i] @ b[i] - dual[i] + rho * x)
            dual[i] = dual[i] + rho * (w - x)
            rows[i] = w + dual[i] / rho
        x = rows.mean(axis=0)
        out.append(x)
    return out


# ---- limits on quadratics, constant rate, no noise: Δ_i = −Q_i (x − b_i) ----

def contraction(a, lr, steps, mu=0.0):
    eye = np.eye(len(a))
    shifted = a + mu * eye
    q = eye - np.linalg.matrix_power(eye - lr * shifted, steps)
    return q @ np.linalg.solve(shifted, a) if mu else q


def fixed_point(problem, lr, steps, multipliers=None, mu=0.0):
    """(Σ m_i Q_i)⁻¹ Σ m_i Q_i b_i."""
    a, b = problem
    m = np.ones(len(a)) if multipliers is None else np.array(multipliers, float)
    q = [contraction(a[i], each(lr, i), each(steps, i), mu) for i in range(len(a))]
    return np.linalg.solve(sum(m[i] * q[i] for i in range(len(a))), sum(m[i] * q[i] @ b[i] for i in range(len(a))))


# ---- FedBuff over a trace of downloads and uploads ----

def staleness_factor(tau, kind='constant', a=.5, b=4):
    if kind == 'polynomial':
        return (1 + tau)**-a
    if kind == 'hinge':
        return 1.0 if tau <= b else 1 / (a * (tau - b) + 1)
    return 1.0


def fedbuff(problem, events, lr, steps, buffer, server_lr=1.0, staleness=None):
    """(models, [(client, τ), …] of each commit)."""
    a, b = problem
    x, version, held, total, members = np.zeros(len(b[0])), 0, {}, np.zeros(len(b[0])), []
    models, commits = [], []
    for event in events.split():
        client = int(event[1:])
        if event[0] == 'D':
            held[client] = (x, version)
            continue
        start, from_version = held[client]
        tau = version - from_version
        total = total + staleness_factor(tau, **(staleness or {})) * (train(a[client], b[client], start, lr, steps) - start)
        members.append((client, tau))
        if len(members) == buffer:
            x, version = x + server_lr * total / buffer, version + 1
            models.append(x)
            commits.append(members)
            total, members = np.zeros(len(b[0])), []
    return models, commits


# ---- FedAU's estimator (Wang and Ji, ICLR 2024, Algorithm 2), bit by bit ----

def fedau_weights(bits, cutoff):
    """ω used in each round, for a client that takes part where `bits` has a 1."""
    total, count, miss, used = 0.0, 0, 0, []
    for bit in bits:
        used.append(1.0 if count == 0 else total / count)
        miss += 1
        if bit == '1' or miss >= cutoff:
            total, count, miss = total + miss, count + 1, 0
    return used


if __name__ == '__main__':
    for model in trajectory('fedavg', q4(), 5, .1, 5):
        print('fedavg', ' '.join(f'{v:.12f}' for v in model))
    print('fedavg limit, K = 5', fixed_point(q4(), .1, 5), 'optimum', optimum(*q4()))
    events = 'D0 D1 D2 D3 U0 D0 U1 D1 U0 D0 U1 D1 U0 U2 D0 D2 U1 U3 D1 D3 U2 U0'
    models, commits = fedbuff(q4(), events, .1, 5, 2, staleness={'kind': 'polynomial'})
    print('fedbuff', models[-1], commits)
    print('fedau', fedau_weights('0001000001101000000000010000', math.inf))
