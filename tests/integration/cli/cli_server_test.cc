// The CLI's commands against a server in this process that answers from a script: what is sent, what is printed, how it exits.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "cli/app.h"
#include "cli/initial_model.h"
#include "common/byte_source.h"
#include "common/digest.h"
#include "common/fd_socket.h"
#include "common/file.h"
#include "common/ids.h"
#include "common/job_spec.h"
#include "common/safetensors.h"
#include "proto/local_call.h"
#include "tests/support/status_matchers.h"
#include "tributary/v1/admin.grpc.pb.h"

namespace tributary::cli {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;

class ScriptedAdmin final : public v1::Admin::Service {
 public:
  grpc::Status SubmitJob(grpc::ServerContext*, grpc::ServerReader<v1::SubmitJobRequest>* reader,
                         v1::SubmitJobResponse* response) override {
    v1::SubmitJobRequest request;
    while (reader->Read(&request)) {
      if (request.has_header()) header = request.header();
      tensors += request.tensors();
      artifact += request.artifact();
      largest_part = std::max(largest_part, request.ByteSizeLong());
    }
    if (refuse_submit) return {grpc::StatusCode::INVALID_ARGUMENT, "strategy: unknown strategy 'x'"};
    response->set_job("n-123456");
    response->add_warnings("no evaluator is attached");
    return grpc::Status::OK;
  }
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request, v1::Job* job) override {
    if (request->job() != "n-123456") return {grpc::StatusCode::NOT_FOUND, "no job '" + request->job() + "'"};
    *job = At(3, v1::JOB_STATE_RUNNING);
    return grpc::Status::OK;
  }
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*, v1::ListJobsResponse* response) override {
    *response->add_jobs() = At(3, v1::JOB_STATE_RUNNING);
    return grpc::Status::OK;
  }
  grpc::Status WatchJob(grpc::ServerContext*, const v1::GetJobRequest* request, grpc::ServerWriter<v1::Job>* writer) override {
    if (request->job() != "n-123456") return {grpc::StatusCode::NOT_FOUND, "no job '" + request->job() + "'"};
    // The first stream breaks midway: the CLI comes back for the rest.
    if (watches.fetch_add(1) == 0) {
      writer->Write(At(1, v1::JOB_STATE_RUNNING));
      return {grpc::StatusCode::UNAVAILABLE, "going away"};
    }
    writer->Write(At(2, v1::JOB_STATE_RUNNING));
    writer->Write(At(3, final_state));
    return grpc::Status::OK;
  }
  grpc::Status ListClients(grpc::ServerContext*, const v1::ListClientsRequest*, v1::ListClientsResponse* response) override {
    v1::Client* client = response->add_clients();
    client->set_id("edge-1");
    client->set_connected(true);
    client->set_last_decline("\x1b[2Jno");
    return grpc::Status::OK;
  }
  grpc::Status GetNode(grpc::ServerContext*, const v1::GetNodeRequest*, v1::Node* node) override {
    node->set_address("127.0.0.1:1");
    node->set_transport("ring");
    node->set_transport_reason("because");
    node->set_metrics("127.0.0.1:9");
    node->set_local_address(local_address);
    // A tree of three leaves: worker 1 is the top, merges the partial of worker 0, and worker 2 has not sent its own yet.
    v1::NodeJob* job = node->add_jobs();
    job->set_job("n-123456");
    job->set_shape("tree");
    job->set_timing("batch:4");
    job->set_plan("ewma");
    job->set_leaves(3);
    job->set_max_leaves(4);
    job->set_load(5.25);
    job->set_slots_used(2);
    job->set_slots(8);
    for (uint32_t i = 0; i < 3; ++i) {
      v1::Worker* worker = node->add_workers();
      worker->set_index(i);
      worker->set_pid(42 + static_cast<int32_t>(i));
      worker->set_role(i == 1 ? "top" : "leaf");
      worker->set_queued(i);
      worker->set_restarts(7 * i);
      worker->set_seconds_per_update(0.0125);
      worker->set_updates_per_second(8);
      worker->set_load(0.1);
      v1::Seat* seat = worker->add_seats();
      seat->set_job("n-123456");
      seat->set_number(i);
      seat->set_role(worker->role());
      seat->set_queued(i);
      seat->set_taken(i + 1);
      seat->set_goal(4);
    }
    node->mutable_workers(0)->mutable_seats(0)->set_parent(1);
    v1::Seat* idle = node->mutable_workers(2)->add_seats();
    idle->set_job("n-123456");
    idle->set_number(3);
    idle->set_role("parked");
    node->mutable_workers(1)->mutable_seats(0)->set_partials_taken(1);
    node->mutable_workers(1)->mutable_seats(0)->set_partials_goal(2);
    return grpc::Status::OK;
  }

  static v1::Job At(uint64_t version, v1::JobState state) {
    v1::Job job;
    job.set_id("n-123456");
    job.set_name("n");
    job.set_state(state);
    job.set_version(version);
    job.set_target_versions(3);
    return job;
  }

  v1::SubmitHeader header;
  std::string tensors, artifact;
  size_t largest_part = 0;
  std::string local_address;
  bool refuse_submit = false;
  v1::JobState final_state = v1::JOB_STATE_DONE;
  std::atomic<int> watches{0};
};

struct Result {
  int code = -1;
  std::string out, err;
  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

class CliServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "trib-cli-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&admin_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown();
    std::filesystem::remove_all(dir_);
  }

  // One command line, as main runs it after parsing.
  Result Run(const std::vector<std::string>& command, bool at_server = true) {
    Context context;
    const auto app = MakeApp(context);
    std::vector<std::string> args(command.rbegin(), command.rend());  // CLI11 takes them backwards
    if (at_server) args.insert(args.begin(), {address_, "--server"});
    app->parse(args);
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    Result result;
    result.code = context.action();
    result.out = ::testing::internal::GetCapturedStdout();
    result.err = ::testing::internal::GetCapturedStderr();
    return result;
  }

  // A job whose model has `elements` numbers; returns its path.
  std::string WriteJob(int64_t elements, const std::string& more = "") {
    const TensorLayout layout = *TensorLayout::Create({{"w", {elements}, DType::kF32, TensorKind::kTrainable}});
    std::vector<std::byte> flat(layout.total_bytes());
    for (size_t i = 0; i < flat.size(); ++i) flat[i] = static_cast<std::byte>(i % 61);
    EXPECT_THAT(WriteSafetensors(dir_ / "m.safetensors", layout, flat), IsOk());
    const std::string yaml = "name: n\nmodel: {tensors: " + (dir_ / "m.safetensors").string() + "}\ncohort: {size: 2}\n" + more;
    EXPECT_THAT(WriteFileAtomically(dir_ / "job.yaml", yaml), IsOk());
    return (dir_ / "job.yaml").string();
  }

  std::filesystem::path dir_;
  ScriptedAdmin admin_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

TEST_F(CliServerTest, SubmitSendsTheCanonicalJobAndEveryByteInParts) {
  const std::string job = WriteJob(1'000'000);
  const Result result = Run({"submit", job, "--json"});
  ASSERT_EQ(result.code, kDone) << result.err << result.out;
  EXPECT_EQ(result.json()["id"], "n-123456");
  EXPECT_THAT(result.err, HasSubstr("warning: no evaluator is attached"));
  EXPECT_EQ(admin_.header.spec_yaml(), CanonicalYaml(*ReadJobSpec(job)));
  EXPECT_EQ(admin_.tensors, *ReadFile(dir_ / "m.safetensors"));
  EXPECT_EQ(admin_.header.tensors_bytes(), admin_.tensors.size());
  EXPECT_EQ(admin_.header.artifact_bytes(), 0u);
  EXPECT_LT(admin_.largest_part, size_t{4} << 20);
}

// A server whose local socket counts what comes over it and answers with `code`.
class LocalSocket {
 public:
  explicit LocalSocket(int code) : code_(code), listener_(ListenAbstract(name, 4).value()), thread_([this] { Serve(); }) {}
  std::string Tensors() {
    thread_.join();
    return tensors_;
  }
  const std::string name = "tributary-" + RandomHex(16);

 private:
  void Serve() {
    pollfd waiting{listener_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 20'000) != 1) return;
    const UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    absl::StatusOr<ReceivedRecord> record = ReceiveRecord(socket.get(), kMaxLocalRequestBytes, absl::Seconds(20), "test");
    v1::LocalRequest request;
    if (!record.ok() || !request.ParseFromArray(record->bytes.data(), static_cast<int>(record->bytes.size())) || record->fds.size() != 1) return;
    const FileSource file = FileSource::Of(std::move(record->fds[0]), "tensors").value();
    tensors_.resize(file.size());
    EXPECT_THAT(file.Read(0, std::as_writable_bytes(std::span(tensors_))), IsOk());
    EXPECT_EQ(request.submit().header().tensors_bytes(), tensors_.size());
    v1::LocalAnswer answer;
    answer.set_code(code_);
    answer.set_message("the store is full");
    answer.mutable_submitted()->set_job("n-abcdef");
    const std::string bytes = answer.SerializeAsString();
    EXPECT_THAT(SendRecord(socket.get(), std::as_bytes(std::span(bytes)), {}, absl::Seconds(20), "test"), IsOk());
  }
  const int code_;
  std::string tensors_;
  UniqueFd listener_;
  std::jthread thread_;
};

TEST_F(CliServerTest, AnAggregatorOfThisHostIsHandedTheFileInstead) {
  LocalSocket socket(0);
  admin_.local_address = socket.name;
  const Result result = Run({"submit", WriteJob(1000), "--json"});
  ASSERT_EQ(result.code, kDone) << result.err;
  EXPECT_EQ(result.json()["id"], "n-abcdef");
  EXPECT_EQ(socket.Tensors(), *ReadFile(dir_ / "m.safetensors"));
  EXPECT_EQ(admin_.header.spec_yaml(), "") << "it was sent over gRPC as well";
}

TEST_F(CliServerTest, WhatFailsAfterTheFileWasHandedOverIsNotSubmittedAgain) {
  LocalSocket socket(static_cast<int>(absl::StatusCode::kResourceExhausted));
  admin_.local_address = socket.name;
  const Result result = Run({"submit", WriteJob(1000)});
  EXPECT_EQ(result.code, kRefused);
  EXPECT_THAT(result.err, HasSubstr("the store is full"));
  socket.Tensors();
  EXPECT_EQ(admin_.header.spec_yaml(), "");
}

TEST_F(CliServerTest, ASocketThatIsNotHereMeansGrpc) {
  for (const std::string& name : {"tributary-" + RandomHex(16), std::string("/run/other.sock")}) {
    admin_.local_address = name;
    admin_.header.Clear();
    const Result result = Run({"submit", WriteJob(1000), "--json"});
    ASSERT_EQ(result.code, kDone) << result.err;
    EXPECT_EQ(result.json()["id"], "n-123456");
    EXPECT_NE(admin_.header.spec_yaml(), "");
  }
}

TEST_F(CliServerTest, SubmitSendsTheTorchScriptFileWithItsHash) {
  WriteJob(4);
  ASSERT_THAT(WriteFileAtomically(dir_ / "net.pt", std::string_view("module bytes")), IsOk());
  const std::string yaml = "name: n\nmodel: {torchscript: " + (dir_ / "net.pt").string() + ", init: " +
                           (dir_ / "m.safetensors").string() + "}\ncohort: {size: 2}\n";
  ASSERT_THAT(WriteFileAtomically(dir_ / "ts.yaml", yaml), IsOk());
  const Result result = Run({"submit", (dir_ / "ts.yaml").string()});
  ASSERT_EQ(result.code, kDone) << result.err;
  EXPECT_EQ(result.out, "n-123456\n");
  EXPECT_EQ(admin_.artifact, "module bytes");
  EXPECT_EQ(admin_.header.artifact_sha256(), Sha256Hex(std::as_bytes(std::span(admin_.artifact))));
}

TEST_F(CliServerTest, ARefusedSubmissionExitsFiveWithTheServersWords) {
  admin_.refuse_submit = true;
  const Result result = Run({"submit", WriteJob(4), "--json"});
  EXPECT_EQ(result.code, kRefused);
  EXPECT_EQ(result.json()["error"]["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(result.json()["error"]["message"], "strategy: unknown strategy 'x'");
}

TEST_F(CliServerTest, ABadJobIsRefusedBeforeTheServerIsAsked) {
  EXPECT_EQ(Run({"submit", (dir_ / "absent.yaml").string()}).code, kNotFound);
  const Result unknown_key = Run({"submit", WriteJob(4, "cohrt: 3\n")});
  EXPECT_EQ(unknown_key.code, kRefused);
  EXPECT_THAT(unknown_key.err, HasSubstr("did you mean 'cohort'?"));
  const std::string job = WriteJob(4);
  ASSERT_THAT(WriteFileAtomically(dir_ / "m.safetensors", std::string_view("garbage")), IsOk());
  const Result tensors = Run({"submit", job});
  EXPECT_EQ(tensors.code, kRefused);
  EXPECT_THAT(tensors.err, HasSubstr("m.safetensors"));
  EXPECT_EQ(admin_.header.spec_yaml(), "");
}

TEST_F(CliServerTest, AZooModelWithoutTheClientProgramSaysWhatIsMissing) {
  ASSERT_THAT(WriteFileAtomically(dir_ / "zoo.yaml", std::string_view("name: n\nmodel: {zoo: cnn}\ncohort: {size: 2}\n")), IsOk());
  // The test program has no tributary-client beside it.
  const Result result = Run({"submit", (dir_ / "zoo.yaml").string()});
  EXPECT_EQ(result.code, kRefused);
  EXPECT_THAT(result.err, HasSubstr("tributary-client is missing"));
}

TEST_F(CliServerTest, WatchComesBackAfterABrokenStreamAndEndsWithTheJob) {
  const Result result = Run({"jobs", "watch", "n-123456", "--json"});
  EXPECT_EQ(result.code, kDone) << result.err;
  std::vector<uint64_t> versions;
  for (size_t at = 0; at < result.out.size();) {
    const size_t end = result.out.find('\n', at);
    versions.push_back(nlohmann::json::parse(result.out.substr(at, end - at))["version"].get<uint64_t>());
    at = end + 1;
  }
  EXPECT_EQ(versions, (std::vector<uint64_t>{1, 2, 3}));
}

TEST_F(CliServerTest, WatchOffATerminalPrintsALinePerVersion) {
  const Result result = Run({"submit", WriteJob(4), "--watch"});
  EXPECT_EQ(result.code, kDone);
  for (const char* line : {"version 1/3", "version 2/3", "version 3/3 · done"}) EXPECT_THAT(result.err, HasSubstr(line));
  EXPECT_EQ(result.err.find('\r'), std::string::npos);
}

TEST_F(CliServerTest, AFailedJobFailsTheCommandThatWaitedForIt) {
  admin_.final_state = v1::JOB_STATE_FAILED;
  EXPECT_EQ(Run({"jobs", "watch", "n-123456"}).code, kFailed);
}

TEST_F(CliServerTest, WhatTheServerDoesNotKnowExitsThree) {
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"jobs", "show", "other"}, {"jobs", "watch", "other"}, {"clients", "show", "other"}}) {
    const Result result = Run(command);
    EXPECT_EQ(result.code, kNotFound) << command[0] << " " << command[1];
    EXPECT_THAT(result.err, HasSubstr("hint: tributary "));
  }
}

TEST_F(CliServerTest, ListsAreDocumentsWithOneKey) {
  EXPECT_EQ(Run({"jobs", "ls", "--json"}).json()["jobs"][0]["id"], "n-123456");
  EXPECT_EQ(Run({"clients", "ls", "--json"}).json()["clients"][0]["id"], "edge-1");
  EXPECT_EQ(Run({"nodes", "ls", "--json"}).json()["nodes"][0]["workers"][0]["pid"], 42);
  EXPECT_EQ(Run({"nodes", "show", "--json"}).json()["address"], "127.0.0.1:1");
}

TEST_F(CliServerTest, NodesShowPrintsWorkersAndTheTreeOfEachJob) {
  const Result text = Run({"nodes", "show"});
  ASSERT_EQ(text.code, kDone);
  EXPECT_THAT(text.out, HasSubstr("transport  ring (because)\n"));
  EXPECT_THAT(text.out, HasSubstr("metrics    http://127.0.0.1:9/metrics\n"));
  EXPECT_THAT(text.out, HasSubstr("     1       43 top          1    12.500      8.00   0.100         0        7\n"));
  EXPECT_THAT(text.out, HasSubstr("job n-123456: tree of 3 out of 4 leaves, plan ewma, timing batch:4; Q 5.25; slots 2 of 8"));
  EXPECT_THAT(text.out, HasSubstr("  top     worker 1   updates 2/4, partials 1/2, 1 queued; lane: 0 pushed, 0 doorbells, 0 stalls, 0 late\n"
                                  "    leaf    worker 0   updates 1/4, 0 queued; lane: 0 pushed, 0 doorbells, 0 stalls, 0 late\n"
                                  "  leaf    worker 2   updates 3/4, 2 queued; lane: 0 pushed, 0 doorbells, 0 stalls, 0 late\n"));
  EXPECT_THAT(text.out, HasSubstr("workers    3 at work, 0 warm (parked), 0 cold;"));
  EXPECT_THAT(text.out, ::testing::Not(HasSubstr("parked  worker"))) << "takes no part in the round";
  const nlohmann::json node = Run({"nodes", "show", "--json"}).json();
  for (const char* key : {"address", "software", "started_us", "epoch", "transport", "transport_reason", "workers", "pool_bytes", "pool_used_bytes", "store"}) {
    EXPECT_TRUE(node.contains(key)) << key;
  }
  const nlohmann::json& top = node["workers"][1];
  EXPECT_EQ(top["role"], "top");
  EXPECT_EQ(top["seconds_per_update"], 0.0125);
  EXPECT_EQ(top["seats"][0]["partials_goal"], 2);
  EXPECT_EQ(top["seats"][0]["parent"], nullptr);
  EXPECT_EQ(node["workers"][0]["seats"][0]["parent"], 1);
  EXPECT_EQ(node["workers"][0]["seats"][0]["goal"], 4);
  EXPECT_EQ(node["jobs"][0]["load"], 5.25);
  EXPECT_EQ(node["jobs"][0]["planned_load"], nullptr) << "not known is not zero";
}

TEST_F(CliServerTest, WhatAClientSaysCannotWriteToTheTerminal) {
  const Result result = Run({"clients", "show", "edge-1"});
  EXPECT_EQ(result.code, kDone);
  EXPECT_EQ(result.out.find('\x1b'), std::string::npos);
  EXPECT_THAT(result.out, HasSubstr("declined   ?[2Jno"));
}

TEST_F(CliServerTest, NothingListeningExitsFourWithinAFewSeconds) {
  server_->Shutdown();
  server_.reset();
  const absl::Time start = absl::Now();
  const Result result = Run({"jobs", "ls", "--json"});
  EXPECT_EQ(result.code, kUnreachable);
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  EXPECT_EQ(result.json()["error"]["code"], "UNAVAILABLE");
  EXPECT_THAT(result.json()["error"]["message"].get<std::string>(), HasSubstr(address_));
  EXPECT_THAT(result.json()["error"]["hint"].get<std::string>(), HasSubstr("tributary-aggregator"));
}

TEST_F(CliServerTest, DoctorAnswersInTimeWithARemedyForWhatIsMissing) {
  const absl::Time start = absl::Now();
  const Result result = Run({"doctor", "--json"});
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  const nlohmann::json document = result.json();
  bool server = false;
  for (const nlohmann::json& finding : document["findings"]) {
    EXPECT_FALSE(finding["needed"].get<std::string>().empty());
    EXPECT_TRUE(finding["ok"].get<bool>() || !finding["remedy"].get<std::string>().empty()) << finding;
    server = server || (finding["name"] == "aggregator" && finding["ok"].get<bool>());
  }
  EXPECT_TRUE(server);
}

TEST_F(CliServerTest, CatalogsNeedNoServer) {
  EXPECT_FALSE(Run({"strategies", "--json"}, false).json()["strategies"].empty());
  EXPECT_FALSE(Run({"models", "--json"}, false).json()["models"].empty());
  EXPECT_FALSE(Run({"datasets", "--json"}, false).json()["datasets"].empty());
}

TEST_F(CliServerTest, RunRefusesAFolderThatHoldsAStore) {
  ASSERT_THAT(MakeDirectories(dir_ / "out" / "store"), IsOk());
  const Result result = Run({"run", WriteJob(4), "--out", (dir_ / "out").string()}, false);
  EXPECT_EQ(result.code, kRefused);
  EXPECT_THAT(result.err, HasSubstr("already holds a state store"));
}

}  // namespace
}  // namespace tributary::cli
