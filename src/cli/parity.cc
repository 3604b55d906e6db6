#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/loaded_model.h"
#include "infer/parity.h"

namespace degu {
namespace {

struct ParityArguments {
  std::string checkpoint;
  int64_t seed = 1;
  int sequences = 8;
  int rounds = 2;
  int64_t longest = 200;
  std::string kv_type = "auto";
  DeviceType device = DeviceType::kCpu;
  PlacementArguments placement;
  bool json = false;
};

// Every rank's counts, path by path, on all ranks.
ParityReport joined(Communicator& world, const ParityReport& mine) {
  nlohmann::json text = nlohmann::json::array();
  for (const ParityPath& p : mine.paths) {
    text.push_back({p.name, p.comparisons, p.mismatches, p.first_mismatch});
  }
  ParityReport all;
  for (const std::string& from : world.gather_text(text.dump())) {
    ParityReport report;
    for (const auto& p : nlohmann::json::parse(from)) {
      report.paths.push_back({p[0].get<std::string>(), p[1].get<int64_t>(), p[2].get<int64_t>(),
                              p[3].get<std::string>()});
    }
    all.add(report);
  }
  return all;
}

void print(const ParityReport& report) {
  std::printf("%-28s %14s %12s\n", "path against training", "comparisons", "mismatches");
  for (const ParityPath& p : report.paths) {
    std::printf("%-28s %14lld %12lld", p.name.c_str(), static_cast<long long>(p.comparisons),
                static_cast<long long>(p.mismatches));
    if (!p.first_mismatch.empty()) std::printf("  first: %s", p.first_mismatch.c_str());
    std::printf("\n");
  }
  std::printf("%-28s %14lld %12lld\n", "all", static_cast<long long>(report.comparisons()),
              static_cast<long long>(report.mismatches()));
}

void print_json(const ParityReport& report, const LoadedModel& loaded, const Job& job,
                const ParityArguments& a, int ranks) {
  nlohmann::json paths = nlohmann::json::array();
  for (const ParityPath& p : report.paths) {
    paths.push_back(
        {{"path", p.name}, {"comparisons", p.comparisons}, {"mismatches", p.mismatches}});
    if (!p.first_mismatch.empty()) paths.back()["first_mismatch"] = p.first_mismatch;
  }
  const nlohmann::json out = {{"comparisons", report.comparisons()},
                              {"mismatches", report.mismatches()},
                              {"paths", paths},
                              {"ranks", ranks},
                              {"kv", a.kv_type},
                              {"placement", a.placement.placement},
                              {"isa", isa_name(job.context().isa())},
                              {"device", enum_name(job.context().device())},
                              {"checkpoint", loaded.folder}};
  std::printf("%s\n", out.dump(2).c_str());
}

ExitCode parity(const ParityArguments& a) {
  Job job(0, a.device);
  LoadedModel loaded(a.checkpoint);
  const int ranks = job.world().size();
  loaded.load(job, loaded.config.model.moe.experts > 0 ? ranks : 1, a.placement);
  const DType type = a.kv_type == "int8" ? DType::kI8 : loaded.parameters->activation();
  const ParityOptions options{.seed = static_cast<uint64_t>(a.seed),
                              .sequences = a.sequences,
                              .rounds = a.rounds,
                              .longest = a.longest,
                              .kv_type = type};
  ParityReport mine;
  if (ranks == 1 && loaded.parameters->placement().contiguous()) {
    mine = check_parity(job.context(), *loaded.parameters, options);
  } else {
    const auto whole = loaded.load_whole(job.context());
    // One rank goes through the paths that need no other rank; all go through the exchange.
    if (job.world().rank() == 0) mine = check_parity(job.context(), *whole, options);
    if (loaded.config.model.moe.experts > 0) {
      mine.add(check_expert_parity(loaded.mesh->ep(), job.context(), *whole, *loaded.parameters,
                                   options));
    }
  }
  const ParityReport report = joined(job.world(), mine);
  if (job.world().rank() == 0) {
    if (a.json) {
      print_json(report, loaded, job, a, ranks);
    } else {
      print(report);
    }
  }
  return report.mismatches() == 0 ? ExitCode::kDone : ExitCode::kFailure;
}

}  // namespace

Action attach_parity(CommandLine& line) {
  auto a = std::make_shared<ParityArguments>();
  line.option("checkpoint", a->checkpoint, "a checkpoint, or the folder of a run").required();
  line.option("--seed", a->seed, "of the sequences and of how they are cut and placed");
  line.option("--sequences", a->sequences, "sequences per round").positive();
  line.option("--rounds", a->rounds, "rounds with sequences of their own").positive();
  line.option("--longest", a->longest, "tokens of the longest sequence").positive();
  line.option("--kv", a->kv_type, "type of keys and values: auto (as activations) or int8")
      .among({"auto", "int8"});
  add_device_option(line, a->device);
  add_placement_options(line, a->placement);
  line.flag("--json", a->json, "print the result as one JSON object");
  return [a] { return parity(*a); };
}

}  // namespace degu
