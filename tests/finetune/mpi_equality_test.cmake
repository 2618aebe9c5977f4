# The same job of 8 micro-batches on 1, 2 and 4 ranks, as threads and under mpirun, with tree accumulation: byte-equal weights. With
# tensor parallelism forward sums differ from one rank's, so there threads and processes, 1 and 2 dp ranks are compared.
# cmake -DREGATTA=PROGRAM -DMPIRUN=MPIRUN -DWORK=FOLDER -P mpi_equality_test.cmake
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
foreach(i RANGE 400)
  math(EXPR value "(${i} * 7919) % 1009")
  string(APPEND text "${i} steamed ${value} miles; ")
endforeach()
file(WRITE ${WORK}/text.txt "${text}")
set(job --init random --hidden 32 --layers 2 --heads 2 --data ${WORK}/text.txt --seq 32 --steps 4 --micro-batch 1
        --global-batch 8 --accumulation tree --rule reg --clip 1 --lr 0.01)

function(train name)
  execute_process(COMMAND ${ARGN} --out ${WORK}/${name} RESULT_VARIABLE code ERROR_VARIABLE err OUTPUT_QUIET TIMEOUT 300)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${name} ended with ${code}: ${err}")
  endif()
  file(SHA256 ${WORK}/${name}/model.safetensors sum)
  message(STATUS "${name}: ${sum}")
  if(DEFINED first AND NOT sum STREQUAL first)
    message(SEND_ERROR "${name} has other weights than one rank")
  endif()
  if(NOT DEFINED first)
    set(first ${sum} PARENT_SCOPE)
  endif()
endfunction()

train(one_rank ${REGATTA} finetune ${job} --mesh dp=1)
train(four_threads ${REGATTA} finetune ${job} --mesh dp=4)
train(two_processes ${MPIRUN} -n 2 ${REGATTA} finetune ${job} --mesh dp=2 --transport mpi)
train(four_processes ${MPIRUN} -n 4 ${REGATTA} finetune ${job} --mesh dp=4 --transport mpi)
train(four_processes_zero2 ${MPIRUN} -n 4 ${REGATTA} finetune ${job} --mesh dp=4 --transport mpi --mode zero2 --bucket-bytes 5000)

unset(first)
train(two_tp_threads ${REGATTA} finetune ${job} --mesh tp=2)
train(dp2_tp2_threads ${REGATTA} finetune ${job} --mesh dp=2,tp=2)
train(dp2_tp2_processes ${MPIRUN} -n 4 ${REGATTA} finetune ${job} --mesh dp=2,tp=2 --transport mpi)
