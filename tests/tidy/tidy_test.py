"""Checks the rules of the source tree that a machine can check.

    tidy_test.py ROOT          prints each violation as "file:line: [rule] what", then the longest files and functions; exits 1 if any
    tidy_test.py --self-test   plants one violation (or more) of every rule in a temporary tree; each must be found, and nothing else

Rules: rank, foreign (outside libraries), pure, iostream, target, def, crash-point, contract, dead-test, link, path, todo.
A new folder gets its rank in RANKS, a new outside library its home in HOMES. The lists of longest files and functions never fail.
"""

import dataclasses
import fnmatch
import os
import pathlib
import re
import sys
import tempfile

# A file includes its own folder or a lower rank. tests/ may include anything and nobody includes tests/.
RANKS = {
    'common': 0,
    'proto': 1, 'ebpf': 1, 'aggregator/core': 1, 'client/core': 1, 'client/cuda': 1,
    'aggregator/store': 2, 'aggregator/transport': 2, 'aggregator/state': 2, 'client/torch': 2, 'client/data': 2,
    'simulate': 3, 'aggregator/ingress': 3, 'aggregator/worker': 3, 'aggregator/coordinator': 3, 'client/rpc': 3,
    'aggregator/daemon': 4, 'client/daemon': 4, 'cli': 4,
}
PURE = ('aggregator/core', 'client/core')
SERVICES = ('proto', 'aggregator/ingress', 'aggregator/daemon', 'client/rpc', 'client/daemon', 'cli')
PROGRAMS = ('aggregator/daemon', 'aggregator/worker', 'client/daemon', 'cli')

# Prefix of an <include> (or of a generated "include") -> folders that may have it. tests/ may have all.
HOMES = {
    'rocksdb/': ('aggregator/state',),
    'bpf/': ('ebpf',), 'linux/bpf': ('ebpf',),
    'torch/': ('client/torch',), 'ATen/': ('client/torch',), 'c10/': ('client/torch',),
    'cuda': ('client/cuda',), 'cub/': ('client/cuda',), 'curand': ('client/cuda',), 'cublas': ('client/cuda',), 'nvrtc': ('client/cuda',),
    'grpc': SERVICES,
    'google/': ('proto', 'aggregator/state', 'aggregator/coordinator') + SERVICES,
    'CLI/': PROGRAMS,
    'hwy/': ('aggregator/core',),
    'prometheus/': ('aggregator/daemon',),
    'Eigen/': ('aggregator/core',),
    'yaml-cpp/': ('common',), 'spdlog/': ('common',), 'openssl/': ('common',), 'xxhash': ('common',), 'isa-l': ('common',),
    'nlohmann/': ('common', 'client/data') + PROGRAMS,
    'zlib': ('client/data',), 'pcre2': ('client/data',),
}

# Includes and words that bring the world into a pure folder.
PURE_INCLUDES = re.compile(
    r'^(thread|mutex|shared_mutex|condition_variable|future|stop_token|semaphore|barrier|latch|chrono|ctime|time\.h|fstream|iostream|'
    r'cstdio|stdio\.h|filesystem|unistd\.h|fcntl\.h|poll\.h|signal\.h|csignal|pthread\.h|dirent\.h|sys/.*|linux/.*|netinet/.*|arpa/.*|'
    r'absl/synchronization/.*|absl/time/clock\.h|absl/random/.*|spdlog/.*|google/.*|grpc.*|rocksdb/.*|torch/.*|ATen/.*|c10/.*|'
    r'common/(clock|file|process|log|unique_fd)\.h|tributary/v1/.*)$')
PURE_WORDS = [
    (re.compile(r'\babsl::Now\b|\babsl::GetCurrentTimeNanos\b|\bstd::chrono\b|\bclock_gettime\b|\bgettimeofday\b|\btime\((nullptr|NULL|0)\)'),
     'reads a clock'),
    (re.compile(r'\bstd::j?thread\b|\bstd::async\b|\babsl::Mutex\b|\bstd::(recursive_)?mutex\b|\bthread_local\b|\babsl::SleepFor\b'),
     'has threads'),
    (re.compile(r'\brandom_device\b|\bs?rand\(|\babsl::BitGen\b|\bRandomU64\(|\bRandomHex\(|\bRandomUpdateId\('), 'has global randomness'),
    (re.compile(r'\bgetenv\(|\bf?printf\(|\bstd::(cout|cerr|cin)\b|\bfopen\(|\bmmap\('), 'does I/O'),
]

SOURCE = ('.cc', '.cu', '.c', '.cpp')
HEADER = ('.h', '.cuh')
TEXT = SOURCE + HEADER + ('.py', '.sh', '.md', '.txt', '.cmake', '.json', '.yaml', '.yml', '.proto', '.def', '.service')
SKIP_PATHS = {'examples/data'}  # what scripts/examples.py makes or fetches
SKIP_FOLDERS = {'.git', 'build', '.cache', '__pycache__', 'shared', '.ccache', 'node_modules'}

# .def tables whose lines name a function of their folder instead of a file (second argument).
DEF_BY_FUNCTION = {'client/data/datasets.def'}
# Suffix of the plug-in files of a .def, where it is not ".cc".
DEF_SUFFIX = {'tests/fuzz/fuzz_targets.def': '_fuzz.cc'}
# Files of a plug-in folder that are no plug-ins.
DEF_HELPERS = {'registry.cc', 'replay_main.cc'}
CRASH_DEF = 'common/crash_points.def'

# Written in pieces, or this file would be its own first violation.
MACHINE_PATHS = re.compile('(?<![A-Za-z0-9_.])(/wo' + 'rk/|/ho' + 'me/(?!someone\\b)[A-Za-z]|/Us' + 'ers/[A-Za-z]|/tmp/tr' + 'ib)|' + r'\bfa' + r'rm-[a-z]+\b')


@dataclasses.dataclass(frozen=True)
class Violation:
    path: str
    line: int
    rule: str
    text: str

    def __str__(self):
        return f'{self.path}:{self.line}: [{self.rule}] {self.text}'


class Tree:
    """All text files below a root, read once, by path relative to it."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.files = {}
        self.all_paths = set()
        for folder, folders, names in os.walk(self.root):
            relative = pathlib.Path(folder).relative_to(self.root)
            folders[:] = sorted(f for f in folders if f not in SKIP_FOLDERS and not f.startswith('build') and (relative / f).as_posix() not in SKIP_PATHS)
            for name in sorted(names):
                path = (relative / name).as_posix()
                self.all_paths.add(path)
                if name.endswith(TEXT) or name == '.ci/run':
                    self.files[path] = (pathlib.Path(folder) / name).read_text(encoding='utf-8', errors='replace')

    def having(self, *suffixes):
        return [(path, text) for path, text in self.files.items() if path.endswith(suffixes)]

    def exists(self, path):
        return path in self.all_paths or (self.root / path).exists()


def folder_of(path):
    """The ranked folder of a path, 'tests' for tests, None if it has none."""
    if path.startswith('tests/'):
        return 'tests'
    for depth in (2, 1):
        name = '/'.join(path.split('/')[:-1][:depth])
        if name in RANKS:
            return name
    return None


def without_comments(text):
    """The same number of lines with comments and the insides of literals blanked."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S)

    def blank(match):
        found = match.group(0)
        if found[0] == "'" and match.start() > 0 and text[match.start() - 1].isalnum():
            return found  # a digit separator
        kept = '""' if found[0] in '"R' else ''
        return kept + '\n' * found.count('\n')

    return pattern.sub(blank, text)


def includes(text):
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if match:
            yield number, match.group(1) == '<', match.group(2)


def is_generated(name):
    return name.startswith('tributary/v1/') or name.endswith('.skel.h')


def check_includes(tree):
    for path, text in tree.having(*SOURCE, *HEADER):
        own = folder_of(path)
        if own is None:
            yield Violation(path, 1, 'rank', 'its folder has no rank: add it to RANKS in tests/tidy/tidy_test.py')
            continue
        for line, angle, name in includes(text):
            if path.endswith(('.cu', '.cuh')) and name.startswith(('torch/', 'ATen/', 'c10/', 'client/torch/')):
                yield Violation(path, line, 'foreign', f'a .cu never includes torch: {name}')
            if own == 'tests':
                continue
            if own in PURE and PURE_INCLUDES.match(name):
                yield Violation(path, line, 'pure', f'{own} is pure and includes {name}')
                continue
            if angle or is_generated(name):
                home = 'grpcpp/' if name.endswith('.grpc.pb.h') else name
                for prefix, folders in HOMES.items():
                    if home.startswith(prefix) and own not in folders:
                        yield Violation(path, line, 'foreign', f'{name} belongs in {", ".join(folders)}, not in {own}')
                        break
            if angle or name == own or name.startswith(own + '/'):
                continue
            target = 'proto' if name.startswith('tributary/v1/') else 'ebpf' if name.endswith('.skel.h') else folder_of(name)
            if target is None or not (is_generated(name) or tree.exists(name)):
                yield Violation(path, line, 'rank', f'"{name}" is no file from the root of the tree')
            elif target == 'tests':
                yield Violation(path, line, 'rank', f'{own} includes tests: {name}')
            elif target != own and {own.split('/')[0], target.split('/')[0]} == {'aggregator', 'client'}:
                yield Violation(path, line, 'rank', f'aggregator and client never include each other: {name}')
            elif target != own and RANKS[target] >= RANKS[own]:
                yield Violation(path, line, 'rank', f'{own} (rank {RANKS[own]}) includes {name} (rank {RANKS[target]})')


def check_pure_words(tree):
    for path, text in tree.having(*SOURCE, *HEADER):
        if folder_of(path) not in PURE:
            continue
        for number, line in enumerate(without_comments(text).splitlines(), 1):
            for pattern, what in PURE_WORDS:
                match = pattern.search(line)
                if match:
                    yield Violation(path, number, 'pure', f'{folder_of(path)} is pure and {what}: {match.group(0)}')


def check_iostream(tree):
    for path, text in tree.having(*SOURCE, *HEADER):
        if path.startswith('tests/') or re.search(r'^int main\(', text, re.M):
            continue
        for line, _, name in includes(text):
            if name == 'iostream' and folder_of(path) not in PURE:  # there it breaks purity already
                yield Violation(path, line, 'iostream', 'a library includes <iostream>')


def check_targets(tree):
    """Every source is named, or matched by a file(GLOB), in a CMake file of its folder or of one above it."""
    named = {}
    for path, text in tree.files.items():
        name = path.rsplit('/', 1)[-1]
        if name != 'CMakeLists.txt' and not name.endswith('.cmake'):
            continue
        text = re.sub(r'#[^\n]*', '', text).replace('${CMAKE_CURRENT_SOURCE_DIR}/', '')
        text = text.replace('${CMAKE_CURRENT_LIST_DIR}/', '').replace('${CMAKE_SOURCE_DIR}/', '/')
        patterns = []
        for word in re.findall(r'[^\s()"]+\.(?:cc|cu|cpp|c)\b', text):
            patterns.append(re.sub(r'\$\{[^}]*\}', '*', word))
        named.setdefault(os.path.dirname(path), []).extend(patterns)
    for path, _ in tree.having(*SOURCE):
        folder = os.path.dirname(path)
        found = False
        above = folder
        while True:
            relative = os.path.relpath(path, above or '.')
            for pattern in named.get(above, []):
                # A star does not cross folders, as in CMake.
                if pattern.count('/') == relative.count('/') and fnmatch.fnmatchcase(relative, pattern):
                    found = True
                if pattern.startswith('/') and fnmatch.fnmatchcase('/' + path, pattern):
                    found = True
            if found or not above:
                break
            above = os.path.dirname(above)
        if not found:
            yield Violation(path, 1, 'target', 'no CMakeLists.txt of its folder or above names it')


def def_lines(text):
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*(\w+)\(\s*"?([\w-]+)"?\s*(?:,\s*(\w+))?', line)
        if match and not line.lstrip().startswith(('//', '#')):
            yield number, match.group(2), match.group(3)


def check_def_tables(tree):
    for path, text in tree.having('.def'):
        if path == CRASH_DEF:
            continue
        folder = os.path.dirname(path)
        suffix = DEF_SUFFIX.get(path, '.cc')
        sources = {os.path.basename(p): t for p, t in tree.having('.cc') if os.path.dirname(p) == folder}
        names = set()
        for line, name, function in def_lines(text):
            if name in names:
                yield Violation(path, line, 'def', f"'{name}' has two lines")
            names.add(name)
            if path in DEF_BY_FUNCTION:
                pattern = re.compile(rf'\b{function}\([^;{{]*\)[^;{{]*\{{')
                if not any(pattern.search(without_comments(t)) for t in sources.values()):
                    yield Violation(path, line, 'def', f"no file of {folder} defines {function} for '{name}'")
            elif name + suffix not in sources:
                yield Violation(path, line, 'def', f"there is no {folder}/{name}{suffix} for '{name}'")
        if path in DEF_BY_FUNCTION:
            continue
        for source in sources:
            if source.endswith(suffix) and source not in DEF_HELPERS and source[:-len(suffix)] not in names:
                yield Violation(f'{folder}/{source}', 1, 'def', f'it has no line in {os.path.basename(path)}')


def check_crash_points(tree):
    if CRASH_DEF not in tree.files:
        return
    known = {name: line for line, name, _ in def_lines(tree.files[CRASH_DEF])}
    uses = {}
    for path, text in tree.having(*SOURCE, *HEADER):
        if path.startswith(('tests/', 'common/crash_points')):
            continue
        for number, line in enumerate(without_comments(text).splitlines(), 1):
            for name in re.findall(r'\bTRIB_CRASH_POINT\((\w+)\)', line):
                uses.setdefault(name, []).append((path, number))
                if name not in known:
                    yield Violation(path, number, 'crash-point', f"'{name}' is not in {CRASH_DEF}")
    for name, line in known.items():
        places = uses.get(name, [])
        if len(places) != 1:
            where = ', '.join(f'{p}:{n}' for p, n in places) or 'nowhere'
            yield Violation(CRASH_DEF, line, 'crash-point', f"'{name}' must be used exactly once, is used {where}")


def check_contracts(tree):
    for path, text in tree.having(*HEADER):
        lines = [line for line in text.splitlines() if line.strip()]
        first = lines[0] if lines else ''
        if first.startswith('// SPDX') and len(lines) > 1:
            first = lines[1]
        if not re.match(r'(//|/\*)\s*\S.{14,}', first) and first.strip() != '/*':
            yield Violation(path, 1, 'contract', 'it does not begin with a comment that says what it is for')
        if '#pragma once' not in text and not re.search(r'^#ifndef \w+_H_?$', text, re.M):
            yield Violation(path, 1, 'contract', 'it has no #pragma once')


def check_dead_tests(tree):
    for path, text in tree.files.items():
        if not path.startswith('tests/') or path.startswith('tests/tidy/'):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if path.endswith(SOURCE + HEADER):
                if re.search(r'//.*\bTEST(_F|_P)?\(\w+,', line):
                    yield Violation(path, number, 'dead-test', 'a test that is commented out')
                if re.search(r'\bDISABLED_\w', line):
                    yield Violation(path, number, 'dead-test', 'a test that is disabled')
                if re.search(r'\bGTEST_SKIP\(\)\s*;', line):
                    yield Violation(path, number, 'dead-test', 'a skip without a reason')
                if re.match(r'\s*#\s*if\s+0\b', line):
                    yield Violation(path, number, 'dead-test', 'code under #if 0')
            elif path.endswith('.py') and re.match(r'\s*#\s*def test_\w+\(', line):
                yield Violation(path, number, 'dead-test', 'a test that is commented out')
            elif path.endswith(('.txt', '.cmake')) and re.match(r'\s*#\s*(trib_test|add_test|gtest_discover_tests)\s*\(\s*\w+\s', line) and \
                    not line.rstrip().endswith('.') and ':' not in line:
                yield Violation(path, number, 'dead-test', 'a test target that is commented out')


def slug(heading):
    heading = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).replace('`', '')
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')


def check_links(tree):
    def prose(text):
        fenced = False
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith('```'):
                fenced = not fenced
            elif not fenced:
                yield number, line

    for path, text in tree.having('.md'):
        for number, line in prose(text):
            for target in re.findall(r'\[[^\]]*\]\(([^)\s]+)[^)]*\)', re.sub(r'`[^`]*`', '', line)):
                if re.match(r'[a-z]+:', target):
                    continue
                file, _, anchor = target.partition('#')
                aim = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
                if aim.startswith('..') or os.path.isabs(aim) or not tree.exists(aim):
                    yield Violation(path, number, 'link', f'{target} leads nowhere')
                elif anchor and aim in tree.files and aim.endswith('.md'):
                    headings = {slug(l.lstrip('#')) for _, l in prose(tree.files[aim]) if l.startswith('#')}
                    if anchor not in headings:
                        yield Violation(path, number, 'link', f'{aim} has no heading #{anchor}')


def check_machine_paths(tree):
    for path, text in tree.files.items():
        for number, line in enumerate(text.splitlines(), 1):
            match = MACHINE_PATHS.search(line)
            if match:
                yield Violation(path, number, 'path', f'it names a machine: {match.group(0)}')


def check_todos(tree):
    for path, text in tree.files.items():
        if path.startswith('tests/tidy/') or path.endswith('.md'):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(r'\b(TODO|FIXME|XXX)\b(?!\(#\d+\))', line) and re.search(r'(//|#|\*).*\b(TODO|FIXME|XXX)\b', line):
                yield Violation(path, number, 'todo', 'a TODO names its issue: TODO(#12)')


CHECKS = (check_includes, check_pure_words, check_iostream, check_targets, check_def_tables, check_crash_points, check_contracts,
          check_dead_tests, check_links, check_machine_paths, check_todos)


def check_tree(root):
    tree = Tree(root)
    return [violation for check in CHECKS for violation in check(tree)]


def functions(text):
    """(first line, lines, head) of each outermost function body."""
    code = re.sub(r'^[ \t]*#.*?(?<!\\)$', '', without_comments(text), flags=re.M)
    stack = []  # (kind, line, head)
    head_start = 0
    line = 1
    for position, char in enumerate(code):
        if char == '\n':
            line += 1
        elif char == '{':
            head = ' '.join(code[head_start:position].split())
            inside = any(kind == 'function' for kind, _, _ in stack)
            is_function = '(' in head and not inside and not re.match(r'(namespace|class|struct|enum|union|extern)\b', head) and \
                not re.search(r'=\s*$|^[^(]*=', head)
            stack.append(('function' if is_function else 'other', line, head))
            head_start = position + 1
        elif char == '}':
            if stack:
                kind, first, head = stack.pop()
                if kind == 'function':
                    yield first, line - first + 1, head
            head_start = position + 1
        elif char == ';':
            head_start = position + 1


def report(root):
    tree = Tree(root)
    lengths = sorted(((text.count('\n'), path) for path, text in tree.having(*SOURCE, *HEADER, '.py', '.sh')), reverse=True)[:10]
    found = []
    for path, text in tree.having(*SOURCE, *HEADER):
        found += [(lines, f'{path}:{first}', head) for first, lines, head in functions(text)]
    print('longest files (past 400 lines, ask whether two ideas live there):')
    for lines, path in lengths:
        print(f'  {lines:5}  {path}')
    print('longest functions (past 70 lines, ask the same):')
    for lines, where, head in sorted(found, reverse=True)[:10]:
        name = re.search(r'([\w:~]+)\s*\(', head)
        print(f'  {lines:5}  {where}  {name.group(1) if name else head[:40]}')


# ---- self-test ----

GOOD = {
    'common/ids.h': '// Identifiers, and what they are for.\n#pragma once\n#include <string>\n',
    'common/CMakeLists.txt': 'trib_library(trib_common SOURCES ids.cc)\n',
    'common/ids.cc': '#include "common/ids.h"\n',
    'common/crash_points.def': '// names\nTRIB_CRASH_POINT_NAME(after_fold)\n',
    'aggregator/core/CMakeLists.txt': 'file(GLOB _s CONFIGURE_DEPENDS strategies/*.cc)\ntrib_library(trib_core SOURCES round.cc ${_s})\n',
    'aggregator/core/round.h': '// The round engine. Reads no clock: absl::Now() is forbidden.\n#pragma once\n#include "common/ids.h"\n',
    'aggregator/core/round.cc': '#include "aggregator/core/round.h"\n#include <hwy/highway.h>\nconst char* a = "absl::Now()";\n',
    'aggregator/core/strategies/strategies.def': '// TRIB_STRATEGY(name, Stem)\nTRIB_STRATEGY(fedavg, FedAvg)\n',
    'aggregator/core/strategies/fedavg.cc': '#include "aggregator/core/round.h"\n',
    'aggregator/state/CMakeLists.txt': 'trib_library(trib_state SOURCES store.cc)\n',
    'aggregator/state/store.cc': '#include <rocksdb/db.h>\n#include "aggregator/core/round.h"\n#include "tributary/v1/store.pb.h"\n'
                                 'void F() { TRIB_CRASH_POINT(after_fold); }\n',
    'client/cuda/CMakeLists.txt': 'trib_library(trib_cuda SOURCES kernels.cu)\n',
    'client/cuda/kernels.cu': '#include <cuda_runtime.h>\n',
    'client/data/CMakeLists.txt': 'trib_library(trib_client_data SOURCES idx.cc)\n',
    'client/data/datasets.def': 'TRIB_DATASET("idx", LoadIdx, "x")\n',
    'client/data/idx.cc': 'int LoadIdx(int a) { return a; }\n',
    'cli/CMakeLists.txt': 'trib_program(tributary SOURCES main.cc)\n',
    'cli/main.cc': '#include <iostream>\nint main() {}\n',
    'tests/fuzz/CMakeLists.txt': 'add_executable(fuzz_${name} ${name}_fuzz.cc)\n',
    'tests/fuzz/fuzz_targets.def': '# targets\ntrib_fuzz_target(codec trib_proto)\n',
    'tests/fuzz/codec_fuzz.cc': '#include "aggregator/state/store.h"\n',
    'README.md': '# Read me\nSee [the engine](aggregator/core/round.h), [below](#two-words), [web](https://example.org/x).\n\n## Two words\n'
                 '```\n[not](a link)\n```\n',
}

HEAD = '// A header that says what it is for.\n#pragma once\n'
# (rule, path, text): the file is written over or, with a leading '+', appended to. Exactly this rule must be violated.
PLANTED = [
    ('rank', '+common/ids.h', '#include "aggregator/core/round.h"\n'),                       # upwards
    ('rank', 'aggregator/transport/lane.h', HEAD + '#include "aggregator/state/x.h"\n'),     # sideways (and missing)
    ('rank', '+aggregator/state/store.cc', '#include "aggregator/store/pool.h"\n'),          # no such file
    ('rank', '+cli/main.cc', '#include "tests/fuzz/codec_fuzz.cc"\n'),
    ('rank', '+client/data/idx.cc', '#include "aggregator/core/round.h"\n'),
    ('rank', '+aggregator/core/round.cc', '#include "round.h"\n'),                           # not from the root
    ('rank', 'plugins/new.h', HEAD),                                                         # a folder without rank
    ('foreign', '+common/ids.cc', '#include <rocksdb/db.h>\n'),
    ('foreign', '+aggregator/state/store.cc', '#include <grpcpp/grpcpp.h>\n'),
    ('foreign', '+aggregator/state/store.cc', '#include "tributary/v1/federation.grpc.pb.h"\n'),
    ('foreign', '+client/data/idx.cc', '#include <torch/torch.h>\n'),
    ('foreign', '+cli/main.cc', '#include <cuda_runtime.h>\n'),
    ('pure', '+aggregator/core/round.h', '#include <chrono>\n'),
    ('pure', '+aggregator/core/round.h', '#include "tributary/v1/job.pb.h"\n'),
    ('pure', '+aggregator/core/round.h', '#include "common/clock.h"\n'),
    ('pure', '+aggregator/core/round.h', '#include <iostream>\n'),
    ('pure', '+aggregator/core/round.cc', 'auto t = absl::Now();\n'),
    ('pure', '+aggregator/core/strategies/fedavg.cc', 'std::jthread t;\n'),
    ('pure', '+aggregator/core/strategies/fedavg.cc', 'std::random_device d;\n'),
    ('pure', '+aggregator/core/strategies/fedavg.cc', 'auto u = RandomUpdateId();\n'),
    ('pure', '+aggregator/core/strategies/fedavg.cc', 'auto e = std::getenv("X");\n'),
    ('iostream', '+common/ids.cc', '#include <iostream>\n'),
    ('target', 'common/orphan.cc', 'int x;\n'),
    ('target', 'aggregator/core/deep/er.cc', 'int x;\n'),
    ('target', '+common/CMakeLists.txt', ''),  # replaced below: the library no longer names its source
    ('def', '+aggregator/core/strategies/strategies.def', 'TRIB_STRATEGY(fedghost, FedGhost)\n'),
    ('def', '+aggregator/core/strategies/strategies.def', 'TRIB_STRATEGY(fedavg, FedAvg)\n'),
    ('def', 'aggregator/core/strategies/fedlost.cc', 'int x;\n'),
    ('def', '+client/data/datasets.def', 'TRIB_DATASET("csv", LoadCsv, "x")\n'),
    ('def', 'tests/fuzz/idx_fuzz.cc', 'int x;\n'),
    ('crash-point', '+common/crash_points.def', 'TRIB_CRASH_POINT_NAME(never_passed)\n'),
    ('crash-point', '+aggregator/state/store.cc', 'void G() { TRIB_CRASH_POINT(after_fold); }\n'),
    ('crash-point', '+aggregator/state/store.cc', 'void G() { TRIB_CRASH_POINT(unheard_of); }\n'),
    ('contract', 'common/bare.h', '#pragma once\nclass X {};\n'),
    ('contract', 'common/open.h', '// A header that says what it is for.\nclass X {};\n'),
    ('dead-test', '+tests/fuzz/codec_fuzz.cc', '// TEST(RoundTest, Closes) {}\n'),
    ('dead-test', '+tests/fuzz/codec_fuzz.cc', 'TEST(RoundTest, DISABLED_Closes) {}\n'),
    ('dead-test', '+tests/fuzz/codec_fuzz.cc', 'void F() { GTEST_SKIP(); }\n'),
    ('dead-test', '+tests/fuzz/codec_fuzz.cc', '#if 0\n#endif\n'),
    ('dead-test', 'tests/e2e/a_test.py', '# def test_it():\n'),
    ('dead-test', '+tests/fuzz/CMakeLists.txt', '# trib_test(core_test SOURCES a.h)\n'),
    ('link', '+README.md', '[gone](docs/gone.md)\n'),
    ('link', '+README.md', '[gone](#no-such-heading)\n'),
    ('link', '+README.md', '[outside](../secret.md)\n'),
    ('path', '+README.md', 'Build it in /wo' + 'rk/main.\n'),
    ('path', 'scripts/x.sh', 'cd /ho' + 'me/alice\n'),
    ('path', 'scripts/x.sh', 'fa' + 'rm-status\n'),
    ('todo', '+common/ids.cc', '// TODO: later\n'),
    ('todo', 'scripts/x.sh', '# FIXME this\n'),
]


def write_tree(root, files):
    for path, text in files.items():
        file = pathlib.Path(root) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding='utf-8')


def self_test():
    failures = 0
    with tempfile.TemporaryDirectory() as root:
        write_tree(root, GOOD)
        for violation in check_tree(root):
            print(f'self-test: the good tree is accused: {violation}')
            failures += 1
    with tempfile.TemporaryDirectory() as root:  # a plain file with what must be tolerated
        write_tree(root, GOOD)
        write_tree(root, {'common/ids.cc': '#include "common/ids.h"\n// TODO(#12): see the issue\nint n = 1\'000;\n'})
        for violation in check_tree(root):
            print(f'self-test: what is allowed is accused: {violation}')
            failures += 1
    for rule, path, text in PLANTED:
        appended = path.startswith('+')
        path = path.lstrip('+')
        text = GOOD[path] + text if appended else text
        if rule == 'target' and appended:
            text = 'trib_library(trib_common SOURCES other.h) # ids.cc\n'
        with tempfile.TemporaryDirectory() as root:
            write_tree(root, GOOD)
            write_tree(root, {path: text})
            found = {violation.rule for violation in check_tree(root)}
        if found != {rule}:
            print(f'self-test: planted [{rule}] in {path}, found {sorted(found) or "nothing"}:\n{text}')
            failures += 1
    documented = set(re.search(r'Rules: ([^.]*)\.', __doc__).group(1).replace(' (outside libraries)', '').replace('\n', ' ').split(', '))
    if documented != {rule for rule, _, _ in PLANTED}:
        print(f'self-test: documented rules {sorted(documented)} and planted ones differ')
        failures += 1
    body = '{\n' + '  x();\n' * 30 + '}\n'
    measured = list(functions('namespace a {\nvoid Long(int b) ' + body + 'int c = 3;\nclass D { int E() const { return 1; } };\n}\n'))
    if [(lines, head) for _, lines, head in measured] != [(32, 'void Long(int b)'), (1, 'int E() const')]:
        print(f'self-test: function lengths are wrong: {measured}')
        failures += 1
    print(f'self-test: {len(PLANTED)} planted violations, {failures} failures')
    return failures


def main(arguments):
    if arguments == ['--self-test']:
        return 1 if self_test() else 0
    if len(arguments) != 1 or not os.path.isdir(arguments[0]):
        print(__doc__, file=sys.stderr)
        return 2
    violations = check_tree(arguments[0])
    report(arguments[0])
    for violation in violations:
        print(violation)
    print(f'{len(violations)} violations')
    return 1 if violations else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
