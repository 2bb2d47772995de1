"""EGGROLL in NumPy, written from its definition (common/eggroll.h, eggroll_spec.h, aggregator/core/strategies/eggroll.cc) and from nothing of
their code: a party that holds the first model and knows each version's fitness has the server's weights, bit for bit."""
import hashlib
import math
from fractions import Fraction

import numpy as np

MASK = np.uint64(0xFFFFFFFF)


def philox4x32(key, counter):
    """Philox4x32-10 (Salmon et al., SC 2011). counter: four arrays or numbers of 32 bits; the four words, as uint64 below 2^32."""
    words = [np.asarray(c, np.uint64) for c in counter]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        left, right = np.uint64(0xD2511F53) * words[0], np.uint64(0xCD9E8D57) * words[2]
        words = [(right >> np.uint64(32)) ^ words[1] ^ np.uint64(k0), right & MASK, (left >> np.uint64(32)) ^ words[3] ^ np.uint64(k1), left & MASK]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return words


def signs(seed, layer, member, k, part, entries):
    """Column k of A (part 0) or B (part 1) of one member: bit a mod 32 of word a / 32 mod 4 of group a / 128, set for -1."""
    groups = -(-entries // 128)
    words = np.stack(philox4x32(seed, (np.arange(groups), np.uint64(2 * k + part), np.uint64(member), np.uint64(layer))), axis=1).reshape(-1)
    bits = (words[:, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
    return 1 - 2 * bits.reshape(-1)[:entries].astype(np.int64)


def noise_seed(job_seed, version, client):
    return int(hashlib.sha256(f"eggroll|{job_seed}|{version}|{client}".encode()).hexdigest()[:16], 16)


def noise(shapes, seed, pair, rank):
    """Sum over k of A_k B_k^T for each tensor, of integers. A tensor is a matrix of its first extent's rows; a vector has one column."""
    out = []
    for layer, shape in enumerate(shapes):
        rows = shape[0] if shape else 1
        columns = math.prod(shape) // rows
        total = sum(np.outer(signs(seed, layer, pair, k, 0, rows), signs(seed, layer, pair, k, 1, columns)) for k in range(rank))
        out.append(total.reshape(shape))
    return out


def standardised(fitness):
    """(f - mean) / sqrt(var + 1e-5), summed one after the other as the server does."""
    n, mean, variance = float(len(fitness)), 0.0, 0.0
    for f in fitness:
        mean += f
    mean /= n
    for f in fitness:
        variance += (f - mean) * (f - mean)
    root = math.sqrt(variance / n + 1e-5)
    return [(f - mean) / root for f in fitness]


class Server:
    """The weights and the step. `population` counts missing members too. weights: arrays of one type, float32 or float64."""

    def __init__(self, weights, population=256, sigma=.05, rank=1, lr=.05, server="sgd", center="global", job_seed=0, beta1=.9, beta2=.999, epsilon=1e-8,
                 weight_decay=.01):
        self.weights, self.population, self.sigma, self.rank, self.lr = [w.copy() for w in weights], population, sigma, rank, lr
        self.adamw, self.center, self.job_seed = server == "adamw", center, job_seed
        self.beta1, self.beta2, self.epsilon, self.weight_decay = beta1, beta2, epsilon, weight_decay
        self.version = 0
        self.m = [np.zeros(w.shape) for w in weights]
        self.v = [np.zeros(w.shape) for w in weights]

    def perturbed(self, client, member):
        """The weights of one of the client's members, in double."""
        scale = (1 if member % 2 == 0 else -1) * self.sigma / math.sqrt(self.rank)
        drawn = noise([w.shape for w in self.weights], noise_seed(self.job_seed, self.version, client), member // 2, self.rank)
        return [w.astype(np.float64) + scale * e for w, e in zip(self.weights, drawn)]

    def sums(self, fitness):
        """S of {client: its members' fitness}."""
        names = sorted(fitness)
        if self.center == "client":
            z = [standardised(list(map(float, fitness[name]))) for name in names]
        else:
            flat = standardised([float(f) for name in names for f in fitness[name]])
            z, at = [], 0
            for name in names:
                z.append(flat[at:at + len(fitness[name])])
                at += len(fitness[name])
        sums = [np.zeros(w.shape, np.int64) for w in self.weights]
        for name, own in zip(names, z):
            seed = noise_seed(self.job_seed, self.version, name)
            for p in range(len(own) // 2):
                plus, minus = (int(np.rint(min(16.0, max(-16.0, value)) * 2.0**20)) for value in own[2 * p:2 * p + 2])
                for total, e in zip(sums, noise([w.shape for w in self.weights], seed, p, self.rank)):
                    total += (plus - minus) * e
        return sums

    def step(self, fitness):
        sums = self.sums(fitness)
        self.version += 1
        unit = self.sigma * 2.0**-20 / math.sqrt(float(self.population) * self.rank)
        for i, (w, s) in enumerate(zip(self.weights, sums)):
            if self.adamw:
                gradient = -unit * s.astype(np.float64)
                self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * gradient
                self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * (gradient * gradient)
                first, second = self.m[i] / (1 - power(self.beta1, self.version)), self.v[i] / (1 - power(self.beta2, self.version))
                decayed = w.astype(np.float64) * (1 - self.lr * self.weight_decay)
                self.weights[i] = (decayed - self.lr * first / (np.sqrt(second) + self.epsilon)).astype(w.dtype)
            elif w.dtype == np.float32:
                # fma in single precision: the product of two floats is exact in double, and so is the sum's rounding but for ties of ties.
                c = np.float32(self.lr * self.sigma * 2.0**-20 / math.sqrt(float(self.population) * self.rank))
                self.weights[i] = (np.float64(c) * s.astype(np.float32).astype(np.float64) + w.astype(np.float64)).astype(np.float32)
            else:
                self.weights[i] = fma(self.lr * unit, s, w)
        return self.weights

    def sha256(self):
        return hashlib.sha256(b"".join(np.ascontiguousarray(w).tobytes() for w in self.weights)).hexdigest()


def fma(c, s, w):
    """c*s + w in double with one rounding."""
    exact = [float(Fraction(c) * int(a) + Fraction(b)) for a, b in zip(s.reshape(-1), w.reshape(-1))]
    return np.array(exact).reshape(w.shape)


def power(x, n):
    """By squaring, as the server has it: other orders of the products round otherwise."""
    result = 1.0
    while n:
        if n & 1:
            result *= x
        x *= x
        n >>= 1
    return result
