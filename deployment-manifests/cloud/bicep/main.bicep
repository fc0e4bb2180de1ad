// What the cloud-aggregator needs in Azure: topics, lake, identity, secrets, logs; on request the Logic App that tells people, and the
// program itself as a Container App. For Kubernetes see ../kubernetes. No secret is a parameter or an output.

targetScope = 'resourceGroup'

@description('Where all of it is.')
param location string = resourceGroup().location

@description('First part of the names.')
@minLength(1)
@maxLength(20)
param namePrefix string = 'pm'

@description('Storage account of the lake.')
@minLength(3)
@maxLength(24)
param storageAccountName string = 'pmlake${uniqueString(resourceGroup().id)}'

@description('Container of the lake.')
param containerName string = 'lake'

@description('Redundancy of the lake.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS'])
param storageSku string = 'Standard_ZRS'

@description('Subnets that may reach the lake. Empty: every network, with a role.')
param allowedSubnetIds array = []

@description('Namespace of Event Hubs.')
param eventHubsName string = 'pm-${uniqueString(resourceGroup().id)}'

@description('Throughput units, and how many it may grow to by itself.')
param throughputUnits int = 1

@description('See above.')
param throughputUnitsMax int = 4

@description('Partitions of each topic of readings. It cannot be changed later.')
param readingPartitions int = 12

@description('How long records wait for the cloud-aggregator, in hours.')
param retentionHours int = 168

@description('Vault of the secrets.')
param vaultName string = 'pm-${uniqueString(resourceGroup().id)}'

@description('How long logs are kept, in days.')
param logRetentionDays int = 30

@description('Issuer of the tokens of a Kubernetes cluster that runs the cloud-aggregator. Empty: none.')
param clusterIssuer string = ''

@description('IoT Hub of this resource group whose built-in endpoint is read, too. Empty: none. See ../iot-hub.')
param iotHubName string = ''

@description('Whether outcomes are reported to the cloud-aggregator (POST /api/outcomes).')
param takesOutcomes bool = false

@description('Deploy the Logic App that tells the maintenance team.')
param deployLogicApp bool = false

@description('Of the Logic App: id of the team, id of the channel, addresses, zone of the times. See ../actions/README.md.')
param teamId string = ''

@description('See above.')
param channelId string = ''

@description('See above.')
param mailRecipients string = ''

@description('See above.')
param timeZone string = 'UTC'

@description('Run the cloud-aggregator as a Container App.')
param deployContainerApp bool = false

@description('Of the Container App: registry of the image, and its resource group.')
param registryName string = ''

@description('See above.')
param registryResourceGroup string = resourceGroup().name

@description('Version of the image.')
param version string = '0.1.0'

@description('Name of the secret in the vault with the URL of the Logic App. Empty: nobody is told by HTTP.')
param maintenanceUrlSecret string = ''

module logs 'modules/logs.bicep' = {
  name: '${namePrefix}-logs'
  params: {
    location: location
    workspaceName: '${namePrefix}-logs'
    retentionDays: logRetentionDays
  }
}

module identity 'modules/identity.bicep' = {
  name: '${namePrefix}-identity'
  params: {
    location: location
    namePrefix: namePrefix
    clusterIssuer: clusterIssuer
  }
}

module lake 'modules/storage.bicep' = {
  name: '${namePrefix}-lake'
  params: {
    location: location
    accountName: storageAccountName
    containerName: containerName
    skuName: storageSku
    allowedSubnetIds: allowedSubnetIds
    writerPrincipalId: identity.outputs.aggregatorPrincipalId
    readerPrincipalId: identity.outputs.readerPrincipalId
  }
}

module topics 'modules/event-hubs.bicep' = {
  name: '${namePrefix}-topics'
  params: {
    location: location
    namespaceName: eventHubsName
    capacity: throughputUnits
    capacityMax: throughputUnitsMax
    readingPartitions: readingPartitions
    retentionHours: retentionHours
    takesOutcomes: takesOutcomes
    senderPrincipalId: identity.outputs.aggregatorPrincipalId
  }
}

module vault 'modules/key-vault.bicep' = {
  name: '${namePrefix}-vault'
  params: {
    location: location
    vaultName: vaultName
    eventHubsNamespaceName: topics.outputs.namespaceName
    readRuleName: topics.outputs.readRuleName
    userPrincipalId: identity.outputs.aggregatorPrincipalId
    workspaceId: logs.outputs.workspaceId
  }
}

module hubEndpoint 'modules/hub-endpoint.bicep' = if (!empty(iotHubName)) {
  name: '${namePrefix}-hub-endpoint'
  params: {
    hubName: iotHubName
    vaultName: vault.outputs.vaultName
  }
}

module actions '../actions/logic-app/main.bicep' = if (deployLogicApp) {
  name: '${namePrefix}-actions'
  params: {
    location: location
    teamId: teamId
    channelId: channelId
    mailRecipients: mailRecipients
    timeZone: timeZone
  }
}

module registryPull 'modules/registry-pull.bicep' = if (deployContainerApp) {
  name: '${namePrefix}-registry-pull'
  scope: resourceGroup(registryResourceGroup)
  params: {
    registryName: registryName
    principalId: identity.outputs.aggregatorPrincipalId
  }
}

module app '../container-apps/main.bicep' = if (deployContainerApp) {
  name: '${namePrefix}-app'
  params: {
    location: location
    namePrefix: namePrefix
    registryServer: registryPull!.outputs.loginServer
    version: version
    identityId: identity.outputs.aggregatorId
    identityClientId: identity.outputs.aggregatorClientId
    workspaceId: logs.outputs.workspaceId
    eventHubsHost: topics.outputs.host
    lakeLocation: lake.outputs.location
    secretsUri: vault.outputs.secretsUri
    maintenanceUrlSecret: maintenanceUrlSecret
    outcomeTokensSecret: takesOutcomes ? 'outcome-tokens' : ''
  }
}

@description('For the settings: `kafka.brokers` is this with :9093.')
output eventHubsHost string = topics.outputs.host

@description('For the settings of whoever reads the hub: `kafka.brokers` is this with :9093.')
output hubEndpointHost string = empty(iotHubName) ? '' : hubEndpoint!.outputs.host

@description('For the same settings: `kafka.hub.topic`.')
output hubEndpointTopic string = empty(iotHubName) ? '' : hubEndpoint!.outputs.topic

@description('For the settings: `lake.location`, without a folder.')
output lakeLocation string = lake.outputs.location

@description('For the service account of a cluster.')
output identityClientId string = identity.outputs.aggregatorClientId

@description('For the SecretProviderClass of a cluster.')
output vaultName string = vault.outputs.vaultName
