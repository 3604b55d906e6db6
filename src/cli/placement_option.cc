#include "cli/placement_option.h"

#include <optional>

#include "base/log.h"
#include "comm/agree.h"
#include "infer/placement_file.h"

namespace degu {
namespace {

constexpr const char* kContiguous = "contiguous";
constexpr const char* kAuto = "auto";

void log_choice(const std::string& by, const ExpertRows& rows_LE, const ExpertPlacement& placement,
                int ranks) {
  log_info(
      "experts placed by {}: the busiest of {} ranks takes {:.3f} of the mean rows, {:.3f} with "
      "contiguous runs",
      by, ranks, imbalance(rows_LE, placement, ranks), imbalance(rows_LE, {}, ranks));
}

PlacementFile choose(const CheckpointReader& reader, const ModelShape& shape, int ranks,
                     const PlacementArguments& a) {
  if (a.placement == kAuto) {
    const ExpertFrequencies known = frequencies_for(reader, shape, a.frequencies);
    PlacementFile file{
        .ranks = ranks, .source = known.source, .placement = place_by_rows(known.rows_LE, ranks)};
    log_choice(known.source, known.rows_LE, file.placement, ranks);
    return file;
  }
  PlacementFile file = read_placement(a.placement, shape);
  if (file.ranks != ranks) {
    log_warn("{}: was chosen for {} ranks, not {}; the ranks' work may be uneven", a.placement,
             file.ranks, ranks);
  }
  if (a.frequencies.empty()) {
    log_info("experts placed as in {}", a.placement);
  } else {
    log_choice(a.placement, read_frequencies(a.frequencies, shape).rows_LE, file.placement, ranks);
  }
  return file;
}

}  // namespace

void add_placement_options(CommandLine& line, PlacementArguments& a) {
  line.option("--placement", a.placement,
              "on which rank each expert lies: contiguous, auto (by measured frequencies), or a "
              "file of `degu plan --serve --out`; the bits are the same");
  line.option("--frequencies", a.frequencies,
              "what --placement auto counts: a file of `degu generate --routes`, a run's folder "
              "or its metrics.jsonl, a server's /metrics in a file; default: what the checkpoint "
              "knows");
}

ExpertFrequencies frequencies_for(const CheckpointReader& reader, const ModelShape& shape,
                                  const std::string& named) {
  if (!named.empty()) return read_frequencies(named, shape);
  if (std::optional<ExpertFrequencies> own = checkpoint_frequencies(reader, shape)) return *own;
  throw frequencies_missing(reader.folder());
}

ConfigError frequencies_missing(std::string_view place) {
  return ConfigError(
      "{}: nobody measured how often the experts are taken; give --frequencies FILE, of `degu "
      "generate --routes`, a run's folder, or what a server's /metrics said",
      place);
}

ExpertPlacement settle_placement(Job& job, const CheckpointReader& reader, const ModelShape& shape,
                                 int ranks, const PlacementArguments& a) {
  if (a.placement == kContiguous) {
    if (a.frequencies.empty()) return {};
    throw ConfigError("--frequencies {}: is read for --placement auto or FILE", a.frequencies);
  }
  if (shape.moe.experts == 0) {
    throw ConfigError("--placement {}: a dense model has no experts to place", a.placement);
  }
  if (a.placement == kAuto && ranks == 1) {
    log_info("one rank holds all experts: --placement auto changes nothing");
    return {};
  }
  std::string text;
  run_together(job.world(), [&] {
    if (job.world().rank() == 0) text = placement_text(choose(reader, shape, ranks, a), shape);
  });
  return parse_placement(job.world().broadcast_text(text, 0), a.placement, shape).placement;
}

}  // namespace degu
