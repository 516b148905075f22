/* The declarations of source/xla.h are those of XLA's own header: compiled where that is installed, never run. */
#include <xla/ffi/api/c_api.h>

#include "xla.h"

#define SAME_OFFSET(ours, field, theirs, their_field) \
    _Static_assert(offsetof(ours, field) == offsetof(theirs, their_field), #theirs "." #their_field)
#define SAME_SIZE(ours, theirs) _Static_assert(sizeof(ours) == sizeof(theirs), #theirs)

_Static_assert(XLA_METADATA == XLA_FFI_Extension_Metadata, "metadata");
_Static_assert(XLA_EXECUTE == XLA_FFI_ExecutionStage_EXECUTE, "stage");
_Static_assert(XLA_NO_MEMORY == XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "code");
_Static_assert(XLA_FLOAT32 == XLA_FFI_DataType_F32 && XLA_FLOAT64 == XLA_FFI_DataType_F64, "dtypes");
_Static_assert(XLA_FFI_API_MAJOR == 0 && XLA_FFI_API_MINOR >= 1, "version");
_Static_assert(sizeof(int) == sizeof(XLA_FFI_DataType), "enums");

SAME_SIZE(XlaExtension, XLA_FFI_Extension_Base);
SAME_OFFSET(XlaExtension, type, XLA_FFI_Extension_Base, type);
SAME_SIZE(XlaErrorArguments, XLA_FFI_Error_Create_Args);
SAME_OFFSET(XlaErrorArguments, message, XLA_FFI_Error_Create_Args, message);
SAME_OFFSET(XlaErrorArguments, code, XLA_FFI_Error_Create_Args, errc);
SAME_SIZE(XlaVersion, XLA_FFI_Api_Version);
SAME_OFFSET(XlaVersion, major, XLA_FFI_Api_Version, major_version);
SAME_OFFSET(XlaVersion, minor, XLA_FFI_Api_Version, minor_version);
SAME_OFFSET(XlaApi, version, XLA_FFI_Api, api_version);
SAME_OFFSET(XlaApi, create_error, XLA_FFI_Api, XLA_FFI_Error_Create);
SAME_OFFSET(XlaMetadata, version, XLA_FFI_Metadata, api_version);
SAME_OFFSET(XlaMetadataExtension, metadata, XLA_FFI_Metadata_Extension, metadata);
SAME_SIZE(XlaBuffer, XLA_FFI_Buffer);
SAME_OFFSET(XlaBuffer, type, XLA_FFI_Buffer, dtype);
SAME_OFFSET(XlaBuffer, data, XLA_FFI_Buffer, data);
SAME_OFFSET(XlaBuffer, rank, XLA_FFI_Buffer, rank);
SAME_OFFSET(XlaBuffer, shape, XLA_FFI_Buffer, dims);
SAME_SIZE(XlaScalar, XLA_FFI_Scalar);
SAME_OFFSET(XlaScalar, value, XLA_FFI_Scalar, value);
SAME_SIZE(XlaArray, XLA_FFI_Array);
SAME_OFFSET(XlaArray, data, XLA_FFI_Array, data);
SAME_SIZE(XlaBuffers, XLA_FFI_Args);
SAME_OFFSET(XlaBuffers, size, XLA_FFI_Args, size);
SAME_OFFSET(XlaBuffers, buffers, XLA_FFI_Args, args);
SAME_SIZE(XlaBuffers, XLA_FFI_Rets);
SAME_OFFSET(XlaBuffers, buffers, XLA_FFI_Rets, rets);
SAME_SIZE(XlaAttributes, XLA_FFI_Attrs);
SAME_OFFSET(XlaAttributes, values, XLA_FFI_Attrs, attrs);
SAME_OFFSET(XlaFrame, extensions, XLA_FFI_CallFrame, extension_start);
SAME_OFFSET(XlaFrame, api, XLA_FFI_CallFrame, api);
SAME_OFFSET(XlaFrame, stage, XLA_FFI_CallFrame, stage);
SAME_OFFSET(XlaFrame, operands, XLA_FFI_CallFrame, args);
SAME_OFFSET(XlaFrame, results, XLA_FFI_CallFrame, rets);
SAME_OFFSET(XlaFrame, attributes, XLA_FFI_CallFrame, attrs);
