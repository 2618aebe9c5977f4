# Objects compiled for one instruction set must hold nothing that the linker may share with another's: no weak symbols, but for those whose
# name carries the instruction set's own namespace.
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  if(NOT symbols MATCHES " [TtRr] ")
    message(FATAL_ERROR "${object}: nm lists no symbol at all")
  endif()
  string(REGEX REPLACE "[^\n]*7kernels[0-9]+${ISA}[^\n]*" "" symbols "${symbols}")
  if(symbols MATCHES "[^\n]* [WwVvu] [^\n]*")
    message(FATAL_ERROR "${object} has a symbol that another instruction set could link to: ${CMAKE_MATCH_0}")
  endif()
endforeach()
