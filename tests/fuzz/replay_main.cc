// Runs a fuzz target without a fuzzer: every file of the corpus folder, then seeded mutations of them.
//
//   fuzz_NAME CORPUS_FOLDER [MUTATIONS [SEED]]     defaults: 4000, 1
//
// Exit 0 when every input came back. A target that finds a bug aborts; the input is then in the file that the last line on stderr
// names (a handler for SIGABRT and the like writes it), so it can be added to the corpus.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

std::vector<uint8_t> g_input;  // the one being tried, for the handler
char g_crash_path[512];

// Async-signal-safe: open and write only. Exits instead of dying by the signal, so that ctest sees a plain failure.
void OnCrash(int signal_number) {
  const int fd = ::open(g_crash_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd >= 0) {
    [[maybe_unused]] const ssize_t ignored = ::write(fd, g_input.data(), g_input.size());
    ::close(fd);
  }
  static const char kMessage[] = "the target crashed; its input is in ";
  [[maybe_unused]] ssize_t ignored = ::write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  ignored = ::write(STDERR_FILENO, g_crash_path, std::strlen(g_crash_path));
  ignored = ::write(STDERR_FILENO, "\n", 1);
  ::_exit(128 + signal_number);
}

void Try(std::vector<uint8_t> input) {
  g_input = std::move(input);
  // A copy of exact size on the heap: a sanitizer then sees a read past the end.
  const std::vector<uint8_t> exact(g_input.begin(), g_input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  std::vector<uint8_t> Mutate(std::vector<uint8_t> bytes, const std::vector<std::vector<uint8_t>>& corpus) {
    for (size_t rounds = 1 + Below(4); rounds > 0; --rounds) Once(&bytes, corpus);
    if (bytes.size() > kMaxBytes) bytes.resize(kMaxBytes);
    return bytes;
  }

  size_t Below(size_t limit) { return limit == 0 ? 0 : static_cast<size_t>(random_() % limit); }

 private:
  static constexpr size_t kMaxBytes = size_t{1} << 18;

  void Once(std::vector<uint8_t>* bytes, const std::vector<std::vector<uint8_t>>& corpus) {
    static const std::string kTokens[] = {"0",  "-1", "18446744073709551615", "9223372036854775807", "1e999", ".nan", "[", "]", "{", "}",
                                          "\"", ":",  "\n  ",                 "*a",                  "&a ",   "!!x ", ",", "\\u0000"};
    const size_t at = Below(bytes->size() + 1);
    const auto place = bytes->begin() + static_cast<std::ptrdiff_t>(at);
    switch (Below(8)) {
      case 0:  // a flipped bit
        if (at < bytes->size()) (*bytes)[at] ^= static_cast<uint8_t>(1u << Below(8));
        break;
      case 1:  // a random byte
        if (at < bytes->size()) (*bytes)[at] = static_cast<uint8_t>(random_());
        break;
      case 2:  // cut off
        bytes->resize(at);
        break;
      case 3: {  // a piece taken out
        const size_t length = std::min(bytes->size() - at, 1 + Below(16));
        bytes->erase(place, place + static_cast<std::ptrdiff_t>(length));
        break;
      }
      case 4: {  // a piece doubled
        const size_t length = std::min(bytes->size() - at, 1 + Below(64));
        const std::vector<uint8_t> piece(place, place + static_cast<std::ptrdiff_t>(length));
        bytes->insert(place, piece.begin(), piece.end());
        break;
      }
      case 5: {  // something that parsers trip over
        const std::string& token = kTokens[Below(std::size(kTokens))];
        bytes->insert(place, token.begin(), token.end());
        break;
      }
      case 6:  // a number's bytes at an extreme
        for (size_t i = at; i < std::min(bytes->size(), at + (size_t{1} << Below(4))); ++i) (*bytes)[i] = Below(2) ? 0xff : 0x00;
        break;
      case 7: {  // the tail of another input
        const std::vector<uint8_t>& other = corpus[Below(corpus.size())];
        bytes->resize(at);
        bytes->insert(bytes->end(), other.begin() + static_cast<std::ptrdiff_t>(std::min(at, other.size())), other.end());
        break;
      }
    }
  }

  std::mt19937_64 random_;  // its sequence is fixed by the standard: one seed, one run, on every machine
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER [MUTATIONS [SEED]]\n", argv[0]);
    return 2;
  }
  const size_t mutations = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 4000;
  const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  std::snprintf(g_crash_path, sizeof(g_crash_path), "%s-crash-%d", std::filesystem::path(argv[0]).filename().c_str(), ::getpid());
  for (const int crash : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) ::signal(crash, OnCrash);

  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::vector<uint8_t>> corpus;
  for (const std::filesystem::path& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: no corpus\n", argv[1]);
    return 2;
  }
  Try({});
  for (const std::vector<uint8_t>& input : corpus) Try(input);
  Mutator mutator(seed);
  for (size_t i = 0; i < mutations; ++i) Try(mutator.Mutate(corpus[mutator.Below(corpus.size())], corpus));
  std::printf("%zu inputs of the corpus and %zu mutations (seed %llu)\n", corpus.size(), mutations,
              static_cast<unsigned long long>(seed));
  return 0;
}
