# Included by the arm64 check (arm64.py): of the CPU kernels that upstream builds for arm64, only PMPD_CHECK_VARIANTS.
# GCC 12 cannot compile those with SME, and each takes half a minute. The others become empty libraries.
file(WRITE ${CMAKE_BINARY_DIR}/empty.c "int pmpd_empty;\n")

function(pmpd_leave_out_variants)
    foreach(variant armv8.0_1 armv8.2_1 armv8.2_2 armv8.2_3 armv8.6_1 armv8.6_2 armv9.2_1 armv9.2_2)
        if(NOT variant IN_LIST PMPD_CHECK_VARIANTS)
            set_target_properties(ggml-cpu-${variant} PROPERTIES
                SOURCES ${CMAKE_BINARY_DIR}/empty.c COMPILE_OPTIONS "" LINK_LIBRARIES ""
            )
        endif()
    endforeach()
endfunction()

cmake_language(DEFER CALL pmpd_leave_out_variants)
