/* The C interface: Regatta for trainers in any language.
 *
 * A trainer registers the parameters it holds, hands in their gradients and calls step; Regatta owns the parameters'
 * memory, the optimizer's state and all communication of the step. One function here is one call of the C++ interface
 * (runtime/engine/engine.h, runtime/transport/transport.h), with the same meaning.
 *
 *     regatta_transport* ranks;   regatta_engine* engine;   int w;   void* weights;
 *     regatta_transport_mpi(NULL, &ranks);                                   // or _local, or _from_mpi
 *     regatta_engine_create(ranks, "dp=2,tp=2", &engine);
 *     regatta_engine_add_group(engine, "matrices", "reg", "rho=0.2", 1.0, NULL);
 *     regatta_engine_add_param(engine, "W", (int64_t[]){256, 64}, 2, REGATTA_F32, "tp:1", 0, &w);
 *     regatta_engine_build(engine);                                          // collective
 *     regatta_engine_param(engine, w, &weights, NULL, NULL);                 // 256 x 32 here: fill them
 *     regatta_engine_publish_params(engine);                                 // collective
 *     each step:  regatta_engine_add_grad(engine, w, grad, 256 * 32, REGATTA_F32);
 *                 regatta_engine_step(engine, lr, NULL, 0);                  // collective
 *
 * Results. Every function that can fail returns a regatta_status: 0, or what went wrong, and then
 * regatta_last_error() has the sentence. A failed call has written to none of its out-pointers. Out-pointers marked
 * "or NULL" may be NULL.
 * Wrong arguments are found before anything is sent. NULL, unknown and destroyed handles are among them; pointers to
 * memory can't be checked beyond NULL. After TIMEOUT, TRANSPORT or ABORTED neither the transport nor its engines can be
 * used any more: destroy them.
 *
 * Collective functions must be called by all ranks of the transport, in the same order. What one rank alone refuses,
 * the others wait for until their deadline: a rank that gives up calls regatta_transport_abort, and they hear of it at
 * once.
 *
 * Threads. A transport and its engines are driven by one thread at a time; different transports by different threads,
 * as the ranks of a local world are. regatta_last_error is the calling thread's own. regatta_transport_abort may be
 * called from any thread.
 *
 * Texts that functions hand out are UTF-8, end with a zero byte and belong to Regatta.
 */
#ifndef REGATTA_H
#define REGATTA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define REGATTA_API __attribute__((visibility("default")))

typedef struct regatta_transport regatta_transport;
typedef struct regatta_engine regatta_engine;

typedef enum regatta_status {
  REGATTA_OK = 0,
  REGATTA_INVALID_ARGUMENT = 1, /* the caller's mistake: value, shape, name, order of calls; ranks that disagree */
  REGATTA_TIMEOUT = 2,          /* a peer did not arrive within the deadline */
  REGATTA_TRANSPORT = 3,        /* the transport failed or a peer is gone */
  REGATTA_DEVICE = 4,        /* memory could not be had for the runtime's buffers; the device failed or is not there */
  REGATTA_CHECKPOINT = 5,    /* a file could not be written or is damaged */
  REGATTA_NON_FINITE = 6,    /* a gradient was not finite, and non_finite=stop; no state was touched */
  REGATTA_ABORTED = 7,       /* another rank failed and said so */
  REGATTA_OUT_OF_MEMORY = 8, /* the process is out of memory */
  REGATTA_INTERNAL = 9       /* a mistake of ours */
} regatta_status;

typedef enum regatta_dtype { REGATTA_F32 = 0, REGATTA_BF16 = 1, REGATTA_F16 = 2 } regatta_dtype;

/* ---- of the process ---- */

/* "0.1.0". */
REGATTA_API const char* regatta_version(void);
/* The sentence of this thread's latest failed call, "" before there was one. Calls that succeed leave it alone. Valid
 * until the thread's next failed call. */
REGATTA_API const char* regatta_last_error(void);
/* "invalid argument", "timeout", ...; "unknown" for other numbers. */
REGATTA_API const char* regatta_status_name(int status);

/* ---- meshes: who the ranks are ----
 * Text such as "dp=2,tp=2": axes in order, the last one fastest, so rank = dp * 2 + tp. The engine shards over the axis
 * "dp"; all others belong to the trainer. "" is one rank. */

/* Number of ranks along `axis` (1 if the mesh has no such axis), or of the whole mesh if `axis` is NULL. */
REGATTA_API int regatta_mesh_size(const char* mesh, const char* axis, int* size);
/* Coordinate of `rank` along `axis`; 0 if the mesh has no such axis. */
REGATTA_API int regatta_mesh_coordinate(const char* mesh, int rank, const char* axis, int* coordinate);

/* ---- transports: the ranks and the way between them ----
 * `options` is NULL, or settings such as "deadline_seconds=60,shared_memory=off":
 *   deadline_seconds=S        wait for a peer at most S seconds (600)
 *   shared_memory=on|off      mpi: ranks of one host read each other's memory (on), or send messages (off)
 *   device=NAME               where engines over it keep parameters, gradients and state, and step: cpu (cpu), cuda for
 *                             the device of the rank's number on its host, or cuda:N. On a device, pointers to values
 *                             and gradients are device pointers; see regatta_engine_use_stream.
 *   device_messages=WHEN      mpi: give MPI the device's memory: auto, when its library says that it takes it (auto),
 *                             always, or never (through the host)
 *   reduction=tree|sum        nccl: gradients are added in rank order, with the bits of every other transport (tree),
 * or by NCCL (sum) */

/* `world_size` ranks as threads of this process: writes one handle per rank to `ranks`, which has room for that many.
 * Each is to be driven by a thread of its own; 1 is the world of a single process. */
REGATTA_API int regatta_transport_local(int world_size, const char* options, regatta_transport** ranks);
/* This process's rank among all that mpirun started; a world of one without mpirun. Collective. Starts MPI if the
 * program has not, and then also ends it with the last transport. */
REGATTA_API int regatta_transport_mpi(const char* options, regatta_transport** transport);
/* This process's rank of a communicator, given by its Fortran handle (MPI_Comm_c2f, mpi4py's comm.py2f()), for
 * languages that don't include <mpi.h>. See regatta_transport_from_mpi in regatta_mpi.h. */
REGATTA_API int regatta_transport_from_mpi_fortran(int communicator, const char* options,
                                                   regatta_transport** transport);
/* This process's rank of the job that mpirun or torchrun started, over NCCL; `options` must name a device. Collective.
 */
REGATTA_API int regatta_transport_nccl(const char* options, regatta_transport** transport);
REGATTA_API int regatta_transport_rank(const regatta_transport* transport, int* rank);
REGATTA_API int regatta_transport_world_size(const regatta_transport* transport, int* world_size);
/* How bytes travel: "direct", "shared memory", "messages", ... Valid for the transport's life. */
REGATTA_API int regatta_transport_data_path(const regatta_transport* transport, const char** text);
/* Tells all ranks that this one gives up: their waits end with ABORTED and `reason`. From any thread. */
REGATTA_API int regatta_transport_abort(regatta_transport* transport, const char* reason);
/* Destroys the handle; the transport itself lives as long as engines use it. NULL is fine. */
REGATTA_API int regatta_transport_destroy(regatta_transport* transport);

/* ---- engines: setting up ----
 * create, then groups, parameters and options, then build. The same on all ranks, in the same order: build compares. */

/* An engine without parameters. The mesh's size must be the transport's world size. Two engines may share a transport.
 */
REGATTA_API int regatta_engine_create(regatta_transport* transport, const char* mesh, regatta_engine** engine);
/* A group of parameters that share a rule: "reg", "adamw", "muon", ...; `regatta rules` lists them. `settings` is NULL
 * or text such as "momentum=0.9,weight_decay=0.1", of the settings listed there. The group's learning rate is the
 * step's times `lr_scale`. Writes its index to `group` (or NULL).
 */
REGATTA_API int regatta_engine_add_group(regatta_engine* engine, const char* name, const char* rule,
                                         const char* settings, double lr_scale, int* group);
/* A parameter of global shape shape[0] x ... x shape[ndim - 1], whatever this rank holds of it. More than two dims are
 * seen as the first by the rest.
 * `placement` says how the trainer cuts it over the axes of the mesh; NULL or "": whole on every rank.
 *   "tp:0"         rows (dim 0) over tp, "tp:1" columns (dim 1), of each logical block; of a vector: dim 0 are its
 * elements "tp:1,dp:0"    columns over tp, then rows over dp (mode sharded only: otherwise dp belongs to the engine)
 *   "dp:rows"      rows of the whole tensor whatever its blocks, as FSDP2 cuts; "dp:flat" a run of elements, as ZeRO-3
 * An extent that the axis does not divide is cut into ceil(extent / size) each, the last ones short or empty.
 * Along axes that are not named the parameter is replicated: values and gradients must be handed in equal there.
 * Writes its index to `param` (or NULL). */
REGATTA_API int regatta_engine_add_param(regatta_engine* engine, const char* name, const int64_t* shape, int ndim,
                                         int dtype, const char* placement, int group, int* param);
/* Type of the gradients handed in for it, if not the parameter's own. */
REGATTA_API int regatta_engine_set_grad_dtype(regatta_engine* engine, int param, int dtype);
/* Rows of the logical matrices stacked in it (fused QKV, gate and up, experts): each is normalised by itself. `count`
 * numbers that add up to the rows of the tensor. */
REGATTA_API int regatta_engine_set_block_rows(regatta_engine* engine, int param, const int64_t* rows, int count);
/* clang-format off */
/* An option by name, its value as text (defaults in brackets):
 *   mode                        [zero1]: whole or tp-cut parameters, state sharded over dp; zero2: gradients are also
 *                               freed when reduced; sharded: parameters and gradients are cut over dp by the trainer
 *   cut                         where a rank's share of a bucket may end: element, [row], matrix
 *   bucket_bytes                least bytes that travel together [26214400]
 *   micro_batches               add_grad calls per parameter and step [1]
 *   accumulation                of micro-batches: [sum], or tree: the same bits however ranks share a global batch
 *   clip                        global gradient norm; 0 is off [0]
 *   non_finite                  [skip] such steps together, or stop with NON_FINITE
 *   loss_scale                  factor the gradients carry [1]
 *   loss_scale_growth_interval  steps until it doubles; 0 keeps it [0]
 *   loss_scale_smallest         it is halved when a step was skipped, not below this [1]
 *   momentum_dtype              [f32] or bf16
 *   threads                     of this rank's sweeps [1]
 *   device_graph                on a device, with one rank: a step is captured into a CUDA graph; on or [off] */
/* clang-format on */
REGATTA_API int regatta_engine_set_option(regatta_engine* engine, const char* name, const char* value);
/* Collective. Plans, compares the plan with the other ranks, allocates. Afterwards nothing can be added. */
REGATTA_API int regatta_engine_build(regatta_engine* engine);
/* Frees an engine and its parameters' memory. NULL is fine. */
REGATTA_API int regatta_engine_destroy(regatta_engine* engine);

/* ---- engines: parameters and steps (after build) ---- */

/* This rank's values of a parameter: row-major, its logical blocks one after another, `numel` of `dtype` (both or
 * NULL). The memory is the model: compute with it, and find it updated after each step. Valid for the engine's life. */
REGATTA_API int regatta_engine_param(regatta_engine* engine, int param, void** data, int64_t* numel, int* dtype);

/* What this rank holds of one logical block of a parameter. */
typedef struct regatta_part {
  int64_t rows_begin, rows_end; /* rows of the block */
  int64_t cols_begin, cols_end; /* columns of the block */
  int64_t run_begin, run_end;   /* elements of that rectangle, row-major; all of it unless a flat cut applies */
} regatta_part;

REGATTA_API int regatta_engine_param_block_count(regatta_engine* engine, int param, int* count);
REGATTA_API int regatta_engine_param_block(regatta_engine* engine, int param, int block, regatta_part* part);

/* On a device: the CUDA stream (a cudaStream_t) that the trainer's values and gradients are on, from now on; at first
 * the default stream. What add_grad reads comes after what is on it then; what step has changed is there for whatever
 * follows on it. Without a device it does nothing. */
REGATTA_API int regatta_engine_use_stream(regatta_engine* engine, void* stream);

/* Collective. Takes the values now in memory as the model's. Replicas must hold equal values; a difference is refused
 * by the parameter's name. Before the first step, and again after writing other values. */
REGATTA_API int regatta_engine_publish_params(regatta_engine* engine);
/* One micro-batch's gradient of a parameter, laid out as its values; `numel` is theirs. Gradients of the ranks along dp
 * and of micro-batches are added up, never averaged: scale the loss. The memory may be reused on return. */
REGATTA_API int regatta_engine_add_grad(regatta_engine* engine, int param, const void* grad, int64_t numel, int dtype);
/* Which micro-batch of the global batch this rank's `k`th one should be, so that every mesh sees the same tree. */
REGATTA_API int regatta_engine_micro_batch_index(regatta_engine* engine, int k, int64_t* index);
/* The factor the next gradients must carry. */
REGATTA_API int regatta_engine_loss_scale(regatta_engine* engine, double* scale);

/* The facts of a step, equal on all ranks but for times and bytes, which are this rank's. */
typedef struct regatta_step_report {
  int64_t step;          /* updates applied so far, this one included */
  int64_t skipped_steps; /* so far */
  int32_t skipped;       /* 1: a gradient was not finite and nothing was touched */
  int32_t groups;        /* how many regatta_engine_group_figures knows */
  const char* culprit;   /* the first parameter whose gradient was not finite, or ""; valid until the next step */
  double lr;
  double grad_norm; /* of the whole model, before clipping, loss scale removed */
  double clip_factor;
  double loss_scale; /* that this step's gradients carried */
  double wait_grad_seconds, vote_seconds, sweep_seconds, wait_exchange_seconds, wait_gather_seconds, step_seconds;
  double grad_comm_seconds, gather_comm_seconds;                              /* behind the trainer's own work */
  int64_t reduce_scatter_bytes, all_gather_bytes, exchange_bytes, vote_bytes; /* sent */
} regatta_step_report;

/* Collective. Parameters without a gradient count as zero gradients. Writes the report (or NULL); `report_bytes` is
 * sizeof(regatta_step_report), so that later versions can append fields; the same holds for the structs below. */
REGATTA_API int regatta_engine_step(regatta_engine* engine, double lr, regatta_step_report* report,
                                    size_t report_bytes);

/* Figures of a parameter group, or of one parameter, over all ranks. */
typedef struct regatta_figures {
  const char* name; /* valid for the engine's life */
  int64_t numel;
  double grad_norm;
  double update_rms, weight_rms, update_to_weight; /* of the update as applied, decay included */
  double smallest_line_norm, largest_line_norm;    /* over non-zero lines; 0 when there are none */
  int64_t zero_lines, clamped_lines, non_finite_lines;
} regatta_figures;

/* A group's figures of the latest step. */
REGATTA_API int regatta_engine_group_figures(regatta_engine* engine, int group, regatta_figures* figures,
                                             size_t figures_bytes);
/* A parameter's figures of the latest step that was not skipped. */
REGATTA_API int regatta_engine_param_figures(regatta_engine* engine, int param, regatta_figures* figures,
                                             size_t figures_bytes);

/* ---- engines: state, for saving and loading (after build) ---- */

/* A part of one state tensor that this rank holds. */
typedef struct regatta_state_part {
  const char* state; /* "momentum", "moment2", "master", ...; valid for the engine's life */
  int32_t param;
  int32_t block;
  regatta_part part; /* of that block's state; numel = run_end - run_begin */
  const void* data;  /* numel elements; changed by each step */
  int64_t numel;
  int32_t dtype;
  int32_t primary; /* 0 on ranks that hold a replica of another rank's part */
  /* Shape of the block's whole state, in whose coordinates `part` is: the block's own, or, of rules that see whole
   * matrices, rows x 1, 1 x columns or 1 x 1. Such small states are fp32 and lie whole on one rank. */
  int64_t rows, columns;
} regatta_state_part;

/* On a device, `data` of the parts is a copy on the host, as of the latest call of this. */
REGATTA_API int regatta_engine_state_count(regatta_engine* engine, int* count);
REGATTA_API int regatta_engine_state_part(regatta_engine* engine, int index, regatta_state_part* part,
                                          size_t part_bytes);
/* Overwrites part `index`; `numel` and `dtype` must be the part's. */
REGATTA_API int regatta_engine_load_state(regatta_engine* engine, int index, const void* data, int64_t numel,
                                          int dtype);
REGATTA_API int regatta_engine_state_bytes(regatta_engine* engine, int64_t* bytes);
REGATTA_API int regatta_engine_step_count(regatta_engine* engine, int64_t* step);
REGATTA_API int regatta_engine_set_step_count(regatta_engine* engine, int64_t step);

/* ---- engines: the plan (after build) ---- */

/* Payload bytes this rank sends in a step, as planned; the report has those that were sent. */
typedef struct regatta_wire_bytes {
  int64_t reduce_scatter, all_gather, exchange, vote;
} regatta_wire_bytes;

REGATTA_API int regatta_engine_planned_bytes(regatta_engine* engine, regatta_wire_bytes* bytes, size_t bytes_bytes);
/* A line per fact. Valid for the engine's life. */
REGATTA_API int regatta_engine_plan_text(regatta_engine* engine, const char** text);
/* Equal plans have equal fingerprints. */
REGATTA_API int regatta_engine_plan_fingerprint(regatta_engine* engine, uint64_t* fingerprint);

#ifdef __cplusplus
}
#endif

#endif
