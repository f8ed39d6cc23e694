package loader

// CauseID says in one word why a kernel refuses a module, whoever found it out: the offline Check, or the kernel in its own
// lines. The words are for programs and do not change; docs/loader.md lists them.
type CauseID string

// The file.
const (
	CauseNotELF      CauseID = "not-elf"            // neither an ELF file nor one that is compressed in a way known here
	CauseTruncated   CauseID = "truncated"          // shorter than its headers say, or empty
	CauseMalformed   CauseID = "malformed"          // damaged otherwise
	CauseNotModule   CauseID = "not-a-module"       // an ELF file of another kind
	CauseStripped    CauseID = "stripped"           // without a symbol table
	CauseArch        CauseID = "architecture"       // of another machine
	CauseWriteExec   CauseID = "write-exec-section" // a section is writable and executable
	CauseRelocation  CauseID = "relocation"         // cannot be relocated
	CauseDecompress  CauseID = "decompression"      // the kernel cannot unpack it
	CauseFileBusy    CauseID = "file-busy"          // open for writing
	CauseFileTooBig  CauseID = "file-too-big"       // over 2 GiB
	CauseNotReadable CauseID = "not-readable"       // no regular file, or not for this user
)

// The kernel that it was built for.
const (
	CauseStructSize    CauseID = "struct-module-size" // struct module has another size
	CauseModuleLayout  CauseID = "module-layout"      // the CRC of module_layout differs
	CauseVermagic      CauseID = "vermagic"
	CauseSymbolCRC     CauseID = "symbol-crc"         // a symbol's type differs
	CauseNoSymbolCRC   CauseID = "symbol-crc-missing" // the file has no CRC for one of its symbols
	CauseNoModversions CauseID = "no-modversions"     // the file has no CRC at all
	CauseBTF           CauseID = "btf"
	CauseOtherKernel   CauseID = "other-kernel" // another release, and the kernel did not say what it minds
)

// Symbols.
const (
	CauseSymbolMissing    CauseID = "symbol-missing"    // exported by nothing that is loaded
	CauseGPLOnly          CauseID = "gpl-only"          // exported for GPL modules only
	CauseNamespace        CauseID = "namespace"         // in a namespace that is not imported
	CauseModuleNamespace  CauseID = "module-namespace"  // kept for modules that the kernel names
	CauseDuplicateExport  CauseID = "duplicate-export"  // exported already
	CauseDependencyInInit CauseID = "dependency-stuck"  // what it needs is still in its init
	CauseSymbolsUnchecked CauseID = "symbols-unchecked" // a warning: nothing here says what the kernel exports
)

// Policy.
const (
	CauseNoModules        CauseID = "no-module-support"
	CauseNoCapability     CauseID = "no-capability"
	CauseModulesDisabled  CauseID = "modules-disabled"
	CauseBlacklisted      CauseID = "module-blacklist"
	CauseLockdown         CauseID = "lockdown"
	CauseUnsigned         CauseID = "unsigned"
	CauseUnknownKey       CauseID = "unknown-key"
	CauseSignatureKind    CauseID = "signature-unsupported"
	CauseSignatureDiffers CauseID = "signature-mismatch" // the key is trusted, the content has changed
	CauseSignatureDamaged CauseID = "signature-damaged"
	CauseLoadPin          CauseID = "loadpin"
	CauseIMA              CauseID = "ima"
	CauseSecurityPolicy   CauseID = "security-policy" // one that cannot be told from the outside
)

// Parameters.
const (
	CauseParamUnknown CauseID = "parameter-unknown"
	CauseParamValue   CauseID = "parameter-value"
	CauseParamLength  CauseID = "parameter-length" // a text too long
	CauseParamCount   CauseID = "parameter-count"  // too many values
)

// The kernel's state, and the module's own init function.
const (
	CauseBuiltinName CauseID = "builtin-name" // a module of that name is part of the kernel
	CausePercpu      CauseID = "percpu-memory"
	CauseMemory      CauseID = "memory"
	CauseInit        CauseID = "init-refused"
	CauseTaint       CauseID = "taint" // a warning: the kernel will be marked
	CauseBusy        CauseID = "busy"  // of a removal: it is in its init or exit function, or has no exit function
	CauseUnknown     CauseID = "unknown"
)
