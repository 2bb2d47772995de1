#include "cli/progress.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "cli/job_json.h"

namespace tributary::cli {
namespace {

std::atomic<int> interrupts{0};
void OnInterrupt(int) { interrupts.fetch_add(1); }

bool StderrIsTerminal() {
  const char* term = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) != 0 && term != nullptr && std::string(term) != "dumb";
}

// Columns a UTF-8 text takes; every character of our lines is one column wide.
size_t Columns(const std::string& text) {
  size_t columns = 0;
  for (const char c : text) columns += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return columns;
}

std::string Clip(const std::string& text, size_t columns) {
  size_t seen = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;
    if (seen == columns) return text.substr(0, i);
    ++seen;
  }
  return text;
}

}  // namespace

void CatchInterrupts() {
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  // A terminal that closes and a service manager that stops us mean the same as Ctrl-C.
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(signal, &action, nullptr);
}
int Interrupts() { return interrupts.load(); }

ProgressPrinter::ProgressPrinter() : terminal_(StderrIsTerminal()) {}

void ProgressPrinter::Show(const v1::Job& job) {
  const std::string line = ProgressLine(job);
  if (terminal_) {
    winsize size{};
    const size_t width = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
    const std::string clipped = Clip(line, width - 1);
    const size_t columns = Columns(clipped);
    const size_t padding = shown_width_ > columns ? shown_width_ - columns : 0;
    fmt::print(stderr, "\r{}{}", clipped, std::string(padding, ' '));
    std::fflush(stderr);
    shown_width_ = columns;
    return;
  }
  // Not a terminal: a line per version, and when a wait begins that had not been told yet.
  const bool waits_anew = job.version() == last_version_ && last_waiting_.empty() && !job.waiting_for().empty();
  if (job.version() != last_version_ || waits_anew || JobEnded(job.state())) {
    fmt::print(stderr, "{}\n", line);
    std::fflush(stderr);
    last_waiting_ = job.waiting_for();
  }
  last_version_ = job.version();
}

void ProgressPrinter::End() {
  if (terminal_ && shown_width_ > 0) fmt::print(stderr, "\n");
  shown_width_ = 0;
}

absl::StatusOr<v1::Job> WatchUntilEnd(Client& client, const std::string& job, const std::function<void(const v1::Job&)>& seen,
                                      const std::function<bool()>& stop, int patience_s) {
  v1::Job last;
  auto lost_since = std::chrono::steady_clock::time_point::max();
  while (true) {
    grpc::ClientContext context;
    std::atomic<bool> ended{false};
    // The stream blocks in Read while nothing changes; this thread ends it when asked to stop.
    std::jthread watcher([&] {
      while (!ended.load()) {
        if (stop()) {
          context.TryCancel();
          return;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
    });
    v1::GetJobRequest request;
    request.set_job(job);
    const auto stream = client.stub().WatchJob(&context, request);
    while (stream->Read(&last)) {
      lost_since = std::chrono::steady_clock::time_point::max();
      seen(last);
    }
    const grpc::Status status = stream->Finish();
    ended = true;
    watcher.join();
    if (stop() || JobEnded(last.state())) return last;
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE && !status.ok()) return Client::FromGrpc(status);
    const auto now = std::chrono::steady_clock::now();
    if (lost_since == std::chrono::steady_clock::time_point::max()) lost_since = now;
    if (now - lost_since > std::chrono::seconds(patience_s)) {
      return Unavailable("the aggregator has been away for {} s while job '{}' was watched", patience_s, job);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

}  // namespace tributary::cli
