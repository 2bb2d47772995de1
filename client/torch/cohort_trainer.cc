#include "client/torch/cohort_trainer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <cmath>

#include "client/core/local_rule.h"
#include "client/torch/batches.h"
#include "client/torch/local/solver.h"
#include "client/torch/on_device.h"

namespace tributary::client {
namespace {

constexpr int64_t kMaxClients = 1024;  // side by side: a small model's steps are long enough by then

absl::StatusOr<CohortClient> ClientOf(const CohortMember& member, TrainableModel& model, ExampleStore& store) {
  TRIB_ASSIGN_OR_RETURN(const LocalSpec local, member.request.spec->local.Of(member.request.shard));
  TRIB_RETURN_IF_ERROR(CheckLocalSpec(local));
  TRIB_RETURN_IF_ERROR(Batches::Create(member.data, model, store).status());
  return CohortClient{.indices = member.data->indices, .local = local, .seed = member.request.seed};
}

// The models that the places of a schedule begin from: one for all, or one each.
at::Tensor StartOf(TrainableModel& model, std::span<const CohortMember> members, const std::vector<size_t>& of_place) {
  const auto* const first = members[of_place[0]].request.model.data();
  const bool same = std::all_of(of_place.begin(), of_place.end(), [&](size_t m) { return members[m].request.model.data() == first; });
  model.Load(members[of_place[0]].request.model);
  if (same) return model.trainable().clone();
  at::Tensor starts = at::empty({static_cast<int64_t>(of_place.size()), model.trainable().size(0)}, model.trainable().options());
  for (size_t p = 0; p < of_place.size(); ++p) {
    model.Load(members[of_place[p]].request.model);
    starts.select(0, static_cast<int64_t>(p)).copy_(model.trainable());
  }
  return starts;
}

// Rows of [n, P], each beginning at a multiple of 16 bytes.
at::Tensor AlignedCopy(const at::Tensor& rows) {
  const int64_t elements = rows.size(1), to = 16 / static_cast<int64_t>(rows.element_size());
  at::Tensor copy = at::empty({rows.size(0), (elements + to - 1) / to * to}, rows.options()).narrow(1, 0, elements);
  return copy.copy_(rows);
}

}  // namespace

std::string CohortTrainer::Obstacle(TrainableModel& model, std::span<const CohortMember> members) {
  const TrainRequest& request = members[0].request;
  const JobSpec& spec = *request.spec;
  if (const std::string obstacle = CohortProgram::Obstacle(model); !obstacle.empty()) return obstacle;
  if (spec.local.solver != "sgd") return fmt::format("its local solver is '{}'", spec.local.solver);
  const auto rule = LocalRule::Make(spec.strategy, spec.local, request.shard);
  if (!rule.ok() || !rule->plain() || spec.strategy.name == "qfedavg") return fmt::format("strategy '{}' changes the clients' steps", spec.strategy.name);
  if (request.gradient_noise > 0) return "its gradients get noise";
  for (const CohortMember& member : members) {
    if (member.data != nullptr && members[0].data != nullptr && member.data->all != members[0].data->all) return "its clients' examples are in files of their own";
  }
  return "";
}

std::vector<absl::StatusOr<TrainResult>> CohortTrainer::Train(TrainableModel& model, ExampleStore& store, std::span<const CohortMember> members) {
  const at::NoGradGuard no_grad;
  std::vector<absl::StatusOr<TrainResult>> results;
  std::vector<Able> able;
  std::vector<CohortClient> clients;
  for (size_t i = 0; i < members.size(); ++i) {
    absl::StatusOr<CohortClient> client = ClientOf(members[i], model, store);
    results.emplace_back(client.ok() ? Internal("not trained") : client.status());
    if (client.ok()) clients.push_back(*client);
    if (client.ok()) able.push_back({i, *client});
  }
  if (able.empty()) return results;
  const std::optional<ExampleTensors> examples = store.All(members[able[0].member].data->all);
  if (!examples) {
    for (const Able& one : able) results[one.member] = ResourceExhausted("the data set of {} examples does not fit the device", one.client.indices.size());
    return results;
  }
  const CohortSchedule order(clients);  // clients with about as many steps go together
  const JobSpec& spec = *members[0].request.spec;
  CohortShape shape{.clients = static_cast<int64_t>(able.size()), .batch = static_cast<int64_t>(order.batch()), .regression = examples->y.dim() == 2,
                    .momentum = spec.local.momentum, .weight_decay = spec.local.weight_decay, .bf16 = UsesBf16(spec.local)};
  int64_t limit = kMaxClients;
  if (model.device().is_cuda()) limit = std::min<int64_t>(limit, static_cast<int64_t>(FreeDeviceBytes(model.device()) / 2) / CohortProgram::BytesPerClient(model, shape));
  const int64_t groups = (shape.clients + std::max<int64_t>(1, limit) - 1) / std::max<int64_t>(1, limit);
  const auto each = static_cast<size_t>((shape.clients + groups - 1) / groups);
  for (size_t first = 0; first < able.size(); first += each) {
    std::vector<Able> group;
    for (size_t place = first; place < std::min(first + each, able.size()); ++place) group.push_back(able[order.member(place)]);
    shape.clients = static_cast<int64_t>(group.size());
    TrainGroup(model, *examples, shape, members, group, &results);
  }
  return results;
}

void CohortTrainer::TrainGroup(TrainableModel& model, const ExampleTensors& examples, CohortShape shape, std::span<const CohortMember> members,
                               std::span<const Able> group, std::vector<absl::StatusOr<TrainResult>>* results) {
  const absl::Time begin = absl::Now();
  std::vector<CohortClient> clients;
  for (const Able& one : group) clients.push_back(one.client);
  CohortSchedule schedule(clients);
  if (program_ != nullptr && model_ == &model) {  // a larger one serves as well, if it is not mostly empty
    CohortShape kept = program_->shape();
    if (kept.clients >= shape.clients && kept.clients < 2 * shape.clients) shape.clients = kept.clients;
    if (kept.batch >= shape.batch && kept.batch < 2 * shape.batch) shape.batch = kept.batch;
  }
  if (program_ == nullptr || model_ != &model || !(program_->shape() == shape)) {
    program_.reset();
    program_ = std::make_unique<CohortProgram>(model, shape);
    model_ = &model;
  }
  std::vector<size_t> of_place;
  for (size_t p = 0; p < schedule.clients(); ++p) of_place.push_back(group[schedule.member(p)].member);

  std::vector<bool> stopped(of_place.size());
  const auto tell = [&](float done) {
    for (size_t p = 0; p < of_place.size(); ++p) {
      const std::function<bool(float)>& progress = members[of_place[p]].request.progress;
      if (!stopped[p] && progress && !progress(done)) stopped[p] = true;
    }
    return std::find(stopped.begin(), stopped.end(), false) != stopped.end();
  };
  const auto total = static_cast<float>(std::max<uint64_t>(1, schedule.steps()));
  const CohortProgram::Result run = program_->Run(schedule, StartOf(model, members, of_place), examples,
                                                  [&](uint64_t step) { return tell(static_cast<float>(step) / total); });
  tell(1);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin) / static_cast<double>(of_place.size());
  const auto losses = run.losses.accessor<double, 2>();
  const auto largest = run.largest.accessor<double, 1>();
  const bool some_stay = run.updates.is_cuda() && std::any_of(of_place.begin(), of_place.end(), [&](size_t m) { return members[m].request.may_stay_on_device; });
  const at::Tensor staying = some_stay ? AlignedCopy(run.updates) : at::Tensor();
  for (size_t p = 0; p < of_place.size(); ++p) {
    const TrainRequest& request = members[of_place[p]].request;
    const LocalSpec& local = group[schedule.member(p)].client.local;
    absl::StatusOr<TrainResult>& result = (*results)[of_place[p]];
    const uint64_t steps = schedule.steps_of(p);
    const auto place = static_cast<int64_t>(p);
    if (stopped[p]) {
      result = Cancelled("sgd: stopped");
      continue;
    }
    double loss = 0, seen = 0;
    result = TrainResult{};
    for (uint64_t s = 0; s < steps && result.ok(); ++s) {
      const double value = losses[static_cast<int64_t>(s)][place];
      const auto size = static_cast<double>(schedule.BatchSize(p, s));
      loss += value * size;
      seen += size;
      if (!std::isfinite(value)) result = LossNotFinite(value, s, steps, local);
    }
    if (result.ok() && !std::isfinite(largest[place])) result = WeightNotFinite(static_cast<int64_t>(steps), local);
    if (!result.ok()) continue;
    const at::Tensor update = run.updates.select(0, place);
    if (request.may_stay_on_device && some_stay) result->on_device = KeepOnDevice(staying.select(0, place), {}, largest[place]);
    if (result->on_device == nullptr) {
      result->update.resize(model.layout().total_bytes());
      at::from_blob(result->update.data(), update.sizes(), update.options().device(at::kCPU)).copy_(update, /*non_blocking=*/true);
    }
    result->examples = group[schedule.member(p)].client.indices.size();
    result->weight = static_cast<double>(result->examples);
    result->scalars = StrategyScalars(request.spec->strategy, StepNorm(steps, local.lr, local.momentum, /*mu=*/0), /*initial_loss=*/0);
    result->metrics = {{"train_loss", seen > 0 ? loss / seen : 0}, {"train_steps", static_cast<double>(steps)}, {"train_s", seconds}};
  }
  WaitFor(model.device());  // for the copies
}

}  // namespace tributary::client
