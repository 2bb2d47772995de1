"""Best fit in plain Python: the baseline arms of T8b (planner_bench).

    placement_baseline.py FILE    FILE: a line of residual capacities, a line of demands; ids are positions

Prints one JSON line: {"plain_ms": CPU time of the placement as one would write it down, "tuned_ms": of a hand-tuned loop over a list of
numbers (each the mean of PASSES), "nodes": [the node of each item]}. Both take the largest rest where nothing fits and the lowest id among equals, so that the
answer must be the one of aggregator/core/planners.
"""

import dataclasses
import json
import sys
import time

PASSES = 20


@dataclasses.dataclass
class Node:
    id: int
    residual: float


def best_fit(nodes, demands):
    chosen = []
    for demand in demands:
        fitting = [node for node in nodes if node.residual >= demand]
        if fitting:
            best = min(fitting, key=lambda node: (node.residual, node.id))
        else:
            best = max(nodes, key=lambda node: (node.residual, -node.id))
        best.residual -= demand
        chosen.append(best.id)
    return chosen


def best_fit_tuned(residual, demands):
    chosen = []
    for demand in demands:
        best = -1
        least = 0.0
        for node, rest in enumerate(residual):
            if rest >= demand and (best < 0 or rest < least):
                best, least = node, rest
        if best < 0:
            best = residual.index(max(residual))
        residual[best] -= demand
        chosen.append(best)
    return chosen


def timed(function, make_nodes, demands):
    begin = time.process_time()
    for _ in range(PASSES):
        chosen = function(make_nodes(), demands)
    return (time.process_time() - begin) * 1e3 / PASSES, chosen


def main():
    with open(sys.argv[1], encoding='ascii') as file:
        residual = [float(word) for word in file.readline().split()]
        demands = [float(word) for word in file.readline().split()]
    plain_ms, chosen = timed(best_fit, lambda: [Node(i, rest) for i, rest in enumerate(residual)], demands)
    tuned_ms, same = timed(best_fit_tuned, lambda: list(residual), demands)
    assert chosen == same
    print(json.dumps({'plain_ms': plain_ms, 'tuned_ms': tuned_ms, 'nodes': chosen}))


if __name__ == '__main__':
    main()
