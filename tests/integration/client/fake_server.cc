#include "tests/integration/client/fake_server.h"

#include <algorithm>
#include <thread>

#include "common/digest.h"
#include "proto/codec.h"
#include "proto/grpc_status.h"

namespace tributary::client {
namespace {

constexpr char kJob[] = "job-1";

std::span<const std::byte> AsBytes(const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); }

std::string Metadata(grpc::ServerContext& context, const char* key) {
  const auto found = context.client_metadata().find(key);
  return found == context.client_metadata().end() ? "" : std::string(found->second.data(), found->second.size());
}

}  // namespace

FakeServer::FakeServer(const TensorLayout& layout, std::string spec_yaml, FakeFaults faults, uint32_t seed)
    : layout_(layout), spec_yaml_(std::move(spec_yaml)), faults_(faults), random_(seed) {}

FakeServer::~FakeServer() { Stop(false); }

int FakeServer::Start(int port) {
  int bound = 0;
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(), &bound);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  return bound;
}

void FakeServer::Stop(bool forget) {
  if (server_ == nullptr) return;
  {
    absl::MutexLock lock(&mutex_);
    ++generation_;
  }
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  server_.reset();
  absl::MutexLock lock(&mutex_);
  attached_.clear();
  uploads_.clear();
  if (forget) updates_.clear();
}

void FakeServer::SetRounds(uint64_t rounds) {
  absl::MutexLock lock(&mutex_);
  rounds_ = rounds;
}

void FakeServer::SetFaults(const FakeFaults& faults) {
  absl::MutexLock lock(&mutex_);
  faults_ = faults;
}

void FakeServer::CancelTasks() {
  absl::MutexLock lock(&mutex_);
  ++cancel_;
}

void FakeServer::SendEvaluateTasks(bool on) {
  absl::MutexLock lock(&mutex_);
  evaluate_ = on;
}

bool FakeServer::WaitCommitted(size_t clients, absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto done = [this, clients]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return progress_.size() >= clients &&
           std::all_of(progress_.begin(), progress_.end(), [this](const auto& p) ABSL_NO_THREAD_SAFETY_ANALYSIS { return p.second >= rounds_; });
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&done), timeout);
}

bool FakeServer::WaitAttached(size_t clients, absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto done = [this, clients]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return attached_.size() == clients; };
  return mutex_.AwaitWithTimeout(absl::Condition(&done), timeout);
}

bool FakeServer::WaitDeclined(size_t count, absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto done = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return declines_.size() >= count; };
  return mutex_.AwaitWithTimeout(absl::Condition(&done), timeout);
}

bool FakeServer::WaitHeld(size_t bytes, absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto done = [this, bytes]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::any_of(updates_.begin(), updates_.end(), [bytes](const auto& update) { return !update.second.accepted && update.second.bytes.size() >= bytes; });
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&done), timeout);
}

bool FakeServer::Accepted(const UpdateId& update) const {
  absl::MutexLock lock(&mutex_);
  const auto held = updates_.find(ToBytes(update));
  return held != updates_.end() && held->second.accepted;
}

bool FakeServer::WaitHeartbeat(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto done = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return heartbeat_.has_value(); };
  return mutex_.AwaitWithTimeout(absl::Condition(&done), timeout);
}

v1::Heartbeat FakeServer::LastHeartbeat() const {
  absl::MutexLock lock(&mutex_);
  return *heartbeat_;
}

std::vector<FakeServer::Held> FakeServer::Committed() const {
  absl::MutexLock lock(&mutex_);
  std::vector<Held> all;
  for (const auto& [id, held] : committed_) all.push_back(held);
  return all;
}

std::vector<std::string> FakeServer::Declines() const {
  absl::MutexLock lock(&mutex_);
  return declines_;
}

std::vector<v1::EvaluationReport> FakeServer::Evaluations() const {
  absl::MutexLock lock(&mutex_);
  return evaluations_;
}

std::vector<std::string> FakeServer::Violations() const {
  absl::MutexLock lock(&mutex_);
  return violations_;
}

std::set<std::string> FakeServer::control_peers() const {
  absl::MutexLock lock(&mutex_);
  return control_peers_;
}

std::set<std::string> FakeServer::data_peers() const {
  absl::MutexLock lock(&mutex_);
  return data_peers_;
}

uint64_t FakeServer::fetches() const {
  absl::MutexLock lock(&mutex_);
  return fetches_;
}

uint64_t FakeServer::pushes() const {
  absl::MutexLock lock(&mutex_);
  return pushes_;
}

std::string FakeServer::Model(uint64_t version) const {
  std::string model(layout_.total_bytes(), '\0');
  for (size_t i = 0; i < model.size(); ++i) model[i] = static_cast<char>((i * 31 + version * 7) & 0x3f);
  return model;
}

bool FakeServer::Chance(double probability) { return std::uniform_real_distribution<double>(0, 1)(random_) < probability; }

std::string FakeServer::IdentityOf(grpc::ServerContext& context, bool control) {
  (control ? control_peers_ : data_peers_).insert(context.peer());
  std::string client = Metadata(context, "tributary-client");
  const std::string secret = Metadata(context, "tributary-secret");
  if (client.empty() || !CheckSecret(secret).ok()) Violation("a call without identity");
  const auto [at, fresh] = secrets_.emplace(client, secret);
  if (!fresh && at->second != secret) Violation("client " + client + " changed its secret");
  return client;
}

void FakeServer::Fill(const std::string& update, v1::UpdateStatus* status) {
  if (const auto done = committed_.find(update); done != committed_.end()) {
    *status->mutable_key() = done->second.header.key();
    status->set_state(v1::UPDATE_STATE_COMMITTED);
    status->set_version(done->second.header.version() + 1);
    return;
  }
  const auto held = updates_.find(update);
  if (held == updates_.end()) {
    status->set_state(v1::UPDATE_STATE_UNKNOWN);
    return;
  }
  *status->mutable_key() = held->second.header.key();
  if (held->second.accepted) {
    status->set_state(v1::UPDATE_STATE_ACCEPTED);
    return;
  }
  const uint64_t upload = next_upload_++;
  uploads_[upload] = update;
  status->set_state(v1::UPDATE_STATE_PARTIAL);
  status->set_upload_id(upload);
  status->set_next_offset(held->second.bytes.size());
  status->set_chunk_bytes(faults_.chunk_bytes);
}

void FakeServer::Commit(Held& held) {
  const std::string id = held.header.key().update_id();
  if (committed_.contains(id)) {
    Violation("update " + id + " was to be counted twice");
    return;
  }
  committed_[id] = held;
  ++progress_[held.client];
  open_.erase(held.client);
}

// One thread reads, this one sends tasks and verdicts every few milliseconds.
grpc::Status FakeServer::Attach(grpc::ServerContext* context, grpc::ServerReaderWriter<v1::ServerMessage, v1::ClientMessage>* stream) {
  v1::ClientMessage first;
  if (!stream->Read(&first) || !first.has_hello()) return {grpc::StatusCode::INVALID_ARGUMENT, "no Hello"};
  std::string client;
  uint64_t generation = 0, cancel = 0;
  bool evaluates = first.hello().evaluates(), trains = first.hello().trains();
  v1::ServerMessage welcome;
  welcome.mutable_welcome()->set_heartbeat_interval_ms(200);
  std::set<std::string> told;  // updates whose commit this stream has reported
  {
    absl::MutexLock lock(&mutex_);
    if (const absl::Status checked = CheckHello(first.hello()); !checked.ok()) Violation(MessageOf(checked));
    client = IdentityOf(*context, /*control=*/true);
    generation = generation_;
    cancel = cancel_;
    progress_[client];
    for (const v1::UpdateKey& key : first.hello().outbox()) {
      v1::UpdateStatus* status = welcome.mutable_welcome()->add_outbox();
      *status->mutable_key() = key;
      Fill(key.update_id(), status);
      if (status->state() == v1::UPDATE_STATE_COMMITTED) told.insert(key.update_id());
    }
  }
  stream->Write(welcome);
  v1::ServerMessage job;
  job.mutable_job()->set_job(kJob);
  job.mutable_job()->set_spec_yaml(spec_yaml_);
  *job.mutable_job()->mutable_layout() = LayoutToProto(layout_);
  stream->Write(job);
  {
    absl::MutexLock lock(&mutex_);
    attached_.insert(client);
  }
  std::atomic<bool> ended{false};
  std::jthread reader([&] {
    v1::ClientMessage message;
    while (stream->Read(&message)) {
      absl::MutexLock lock(&mutex_);
      if (const absl::Status checked = CheckClientMessage(message); !checked.ok()) Violation(MessageOf(checked));
      if (message.has_declined()) {
        declines_.push_back(message.declined().reason());
        open_.erase(client);
      }
      if (message.has_heartbeat()) heartbeat_ = message.heartbeat();
      if (message.has_evaluation()) evaluations_.push_back(message.evaluation());
    }
    ended = true;
  });
  uint64_t sent_task = 0;
  bool evaluation_sent = false;
  bool dropped = false;
  while (!ended && !context->IsCancelled() && !dropped) {
    std::vector<v1::ServerMessage> messages;
    {
      absl::MutexLock lock(&mutex_);
      if (generation != generation_) break;
      // What was accepted some ticks ago is committed now and then.
      for (auto& [id, held] : updates_) {
        if (held.client == client && held.accepted && !committed_.contains(id) && Chance(0.3)) Commit(held);
      }
      for (const auto& [id, held] : committed_) {
        if (held.client != client || !told.insert(id).second) continue;
        v1::ServerMessage message;
        Fill(id, message.mutable_update());
        messages.push_back(std::move(message));
      }
      if (cancel != cancel_) {
        cancel = cancel_;
        open_.erase(client);
        v1::ServerMessage message;
        message.mutable_cancel()->set_job(kJob);
        message.mutable_cancel()->set_task(sent_task);
        message.mutable_cancel()->set_reason("test");
        messages.push_back(std::move(message));
      }
      if (trains && progress_[client] < rounds_) {
        if (!open_.contains(client)) open_[client] = {next_task_++, progress_[client]};
        if (sent_task != open_[client].first) {
          sent_task = open_[client].first;
          v1::ServerMessage message;
          message.mutable_train()->set_job(kJob);
          message.mutable_train()->set_task(sent_task);
          message.mutable_train()->set_version(open_[client].second);
          messages.push_back(std::move(message));
          dropped = Chance(faults_.drop_attach);
        }
      }
      if (evaluates && evaluate_ && !evaluation_sent) {
        evaluation_sent = true;
        v1::ServerMessage message;
        message.mutable_evaluate()->set_job(kJob);
        message.mutable_evaluate()->set_task(next_task_++);
        message.mutable_evaluate()->set_version(3);
        messages.push_back(std::move(message));
      }
    }
    for (const v1::ServerMessage& message : messages) stream->Write(message);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  if (!ended) context->TryCancel();
  reader.join();
  absl::MutexLock lock(&mutex_);
  attached_.erase(client);
  return grpc::Status::OK;
}

grpc::Status FakeServer::FetchModel(grpc::ServerContext* context, const v1::FetchModelRequest* request,
                                    grpc::ServerWriter<v1::DataChunk>* writer) {
  const std::string model = Model(request->version());
  const std::string sha256 = Sha256Hex(AsBytes(model));
  FakeFaults faults;
  {
    absl::MutexLock lock(&mutex_);
    IdentityOf(*context);
    ++fetches_;
    faults = faults_;
  }
  if (request->offset() > model.size()) return {grpc::StatusCode::OUT_OF_RANGE, "offset"};
  bool first = true;
  for (size_t offset = request->offset(); offset < model.size() || first;) {
    const size_t bytes = std::min<size_t>(777, model.size() - offset);
    v1::DataChunk chunk;
    chunk.set_offset(offset);
    chunk.set_bytes(model.substr(offset, bytes));
    chunk.set_crc32c(Crc32c(AsBytes(chunk.bytes())));
    if (first) {
      chunk.set_total_bytes(model.size());
      chunk.set_sha256(sha256);
      chunk.set_xxh3_128(Xxh3Digest(AsBytes(model)));
    }
    first = false;
    {
      absl::MutexLock lock(&mutex_);
      if (Chance(faults.cut_fetch)) return {grpc::StatusCode::UNAVAILABLE, "cut"};
      if (Chance(faults.corrupt_fetch)) chunk.set_crc32c(chunk.crc32c() ^ 1);
    }
    if (!writer->Write(chunk)) break;
    offset += bytes;
  }
  return grpc::Status::OK;
}

grpc::Status FakeServer::BeginUpload(grpc::ServerContext* context, const v1::BeginUploadRequest* request, v1::UpdateStatus* status) {
  absl::MutexLock lock(&mutex_);
  const std::string client = IdentityOf(*context);
  if (Chance(faults_.push_back)) return ToGrpc(ResourceExhausted("pool is full"), absl::Milliseconds(20));
  if (const auto checked = UploadFromProto(*request); !checked.ok()) Violation(MessageOf(checked.status()));
  if (request->layout() != layout_.Fingerprint()) Violation("wrong layout");
  const std::string& id = request->key().update_id();
  auto [at, fresh] = updates_.try_emplace(id);
  if (fresh) {
    at->second.header = *request;
    at->second.client = client;
    at->second.early = request->xxh3_128().empty();
  } else if (at->second.client != client || at->second.header.weight() != request->weight() ||
             at->second.header.key().task() != request->key().task() || !Announce(at->second, request->xxh3_128())) {
    Violation("update offered again with another header");
  }
  Fill(id, status);
  return grpc::Status::OK;
}

// False: it has said another.
bool FakeServer::Announce(Held& held, const std::string& xxh3_128) {
  if (held.header.xxh3_128().empty()) held.header.set_xxh3_128(xxh3_128);
  return xxh3_128.empty() || held.header.xxh3_128() == xxh3_128;
}

grpc::Status FakeServer::PushUpdate(grpc::ServerContext* context, grpc::ServerReader<v1::DataChunk>* reader, v1::UpdateStatus* status) {
  std::string id;
  {
    absl::MutexLock lock(&mutex_);
    IdentityOf(*context);
    ++pushes_;
  }
  v1::DataChunk chunk;
  while (reader->Read(&chunk)) {
    absl::MutexLock lock(&mutex_);
    const auto upload = uploads_.find(chunk.upload_id());
    if (upload == uploads_.end() || !updates_.contains(upload->second)) return {grpc::StatusCode::NOT_FOUND, "upload"};
    id = upload->second;
    Held& held = updates_[id];
    if (held.accepted || chunk.offset() != held.bytes.size()) return {grpc::StatusCode::FAILED_PRECONDITION, "offset"};
    if (Crc32c(AsBytes(chunk.bytes())) != chunk.crc32c()) Violation("bad crc");
    if (chunk.bytes().empty() && chunk.xxh3_128().empty()) Violation("empty chunk");
    if (chunk.bytes().size() > faults_.chunk_bytes) Violation("chunk over chunk_bytes");
    // Parts of a chunk are kept too: offsets to resume from are odd.
    if (Chance(faults_.cut_push)) {
      held.bytes += chunk.bytes().substr(0, std::uniform_int_distribution<size_t>(0, chunk.bytes().size())(random_));
      if (held.bytes.size() >= held.header.bytes()) held.bytes.resize(held.header.bytes() - 1);
      return {grpc::StatusCode::UNAVAILABLE, "cut"};
    }
    held.bytes += chunk.bytes();
    if (!Announce(held, chunk.xxh3_128())) Violation("another digest");
    if (held.bytes.size() > held.header.bytes()) Violation("more bytes than announced");
    if (held.bytes.size() < held.header.bytes() && Chance(faults_.early_partial)) break;
  }
  absl::MutexLock lock(&mutex_);
  const auto found = updates_.find(id);
  if (found == updates_.end()) return {grpc::StatusCode::UNAVAILABLE, "forgotten"};
  Held& held = found->second;
  if (held.bytes.size() == held.header.bytes() && !held.accepted && !held.header.xxh3_128().empty()) {
    if (Xxh3Digest(AsBytes(held.bytes)) != held.header.xxh3_128()) {
      Violation("digest of the whole is wrong");
    }
    held.accepted = true;
    ++held.counted;
    if (Chance(faults_.lose_answer)) return {grpc::StatusCode::UNAVAILABLE, "answer lost"};
  }
  Fill(id, status);
  return grpc::Status::OK;
}

grpc::Status FakeServer::QueryUpdate(grpc::ServerContext* context, const v1::QueryUpdateRequest* request, v1::QueryUpdateResponse* response) {
  absl::MutexLock lock(&mutex_);
  IdentityOf(*context);
  for (const v1::UpdateKey& key : request->keys()) {
    v1::UpdateStatus* status = response->add_updates();
    *status->mutable_key() = key;
    Fill(key.update_id(), status);
  }
  return grpc::Status::OK;
}

}  // namespace tributary::client
